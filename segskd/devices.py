"""Chooses device and precision, and measures free memory."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from pathlib import Path

import psutil
import torch

from segskd.config import Device, Precision, named
from segskd.errors import OutOfMemory, UserError

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, as malloc.h numbers them."""
KEPT_TENSORS = (2**28, 2**25)
"""Up to these sizes in bytes, glibc keeps the memory of freed tensors. Older versions take no more than the second."""
KEPT_IN_ALL = 2**30


def choose_device(asked: Device) -> Device:
    """The asked device, or the best one for "auto". Raises UserError for one that this machine doesn't have."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[asked]:
        device = named("device")
        raise UserError(f"{device} {asked}: this machine has none that PyTorch can use; take {device} cpu", "device")
    return asked


def choose_precision(asked: Precision, device: Device) -> Precision:
    """The asked precision. "auto" is bf16 if the hardware multiplies it, else fp32.

    Raises UserError for one that the device can't compute in.
    """
    if asked == "fp16" and device != "cuda":
        raise UserError(f"{named('precision')} fp16 needs a CUDA device: take bf16 or 32", "precision")
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if device == "cpu" and _cpu_multiplies_bf16() else "32"


def free_memory() -> int:
    """Bytes of main memory that this process may still use, within the limit of its container."""
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such container, or no limit
        return int(free)
    return max(0, min(free, limit - used))


def free_device_memory(device: torch.device) -> int:
    """Free bytes of the memory of `device`."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(torch.cuda.device_count())] if named is None else named.split(",")


def use_cpu(threads: int | None = None) -> None:
    """Prepares this process for training on the CPU: sets the number of threads, and how glibc handles freed memory.

    By default glibc returns the memory of large freed tensors to the system and requests it again in the next step,
    which is slow. Afterwards it keeps up to 1 GiB of it. Other C libraries are not changed.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in KEPT_TENSORS):
            libc.mallopt(M_TRIM_THRESHOLD, KEPT_IN_ALL)


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """What to tell a user when `error` means that memory ran out, else None."""
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if refused or isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        smaller = f"{named('data.size')}, {named('optimisation.batch')} or {named('store.budget_gib')}"
        return OutOfMemory(f"memory ran out: take a smaller {smaller}, or predict by --tile")
    return None


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU multiplies bf16. PyTorch has no public function for that; without the private ones it is
    False."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def started_by_others() -> tuple[int, int] | None:
    """(processes a machine, machines) as torchrun or SLURM started them; None when nobody did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if by_slurm():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        return int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes, nodes
    return None


def by_slurm() -> bool:
    """Whether srun started several of this process; a batch script and an interactive shell are no such thing."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and not interactive
