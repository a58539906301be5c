"""The processes that train one run together, one a device, each on its own part of the images.

They are started by the recipe's `devices` and `nodes`, by torchrun or by SLURM; Lightning Fabric tells which.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segskd.config import Recipe, named
from segskd.errors import Echoed, UserError

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would tell of its precision each time
# Lightning sets it for processes that fork, which nothing here does; each step of an optimiser would ask for GPUs so,
# and where there is none that takes 2 ms.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PATIENCE = timedelta(hours=6)
"""How long processes wait for one another: the first may ask the teacher about many images."""
Thing = TypeVar("Thing")


class Ranks:
    """This process among those that work on a run. Every method but `part` is called by all of them at once."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.number = fabric.global_rank
        self.count = fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run's files and tells what happens."""
        return self.number == 0

    def part(self, things: Sequence[Thing]) -> list[Thing]:
        """This process's share of things that all of them have in the same order."""
        return list(things[self.number :: self.count])

    def same(self, thing: Thing) -> Thing:
        """What the first process gives."""
        return thing if self.count == 1 else self.fabric.broadcast(thing)

    def total(self, *figures: float) -> list[float]:
        """Each figure's sum over the processes."""
        if self.count == 1:
            return list(figures)
        return self.add(torch.tensor(figures, dtype=torch.float64)).tolist()

    def add(self, counts: Tensor) -> Tensor:
        """The tensor's sum over the processes."""
        if self.count == 1:
            return counts
        summed = self.fabric.all_reduce(counts.to(self.fabric.device), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed.to(counts.device)

    def average(self, modules: Iterable[nn.Module]) -> None:
        """Gives running statistics their mean over the processes, each of which saw its own images."""
        if self.count == 1:
            return
        moved = [module for module in modules if module.training]
        buffers = [buffer for module in moved for buffer in module.buffers() if buffer.is_floating_point()]
        if buffers:
            means = self.add(torch.cat([buffer.flatten() for buffer in buffers])) / self.count
            for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def spread(self, tensors: Iterable[Tensor], source: int) -> None:
        """Gives these tensors the values that they have in process `source`."""
        if self.count > 1:
            for tensor in tensors:
                moved = tensor.contiguous()
                torch.distributed.broadcast(moved, source)
                tensor.copy_(moved)

    @cached_property
    def own(self) -> Fabric:
        """This process's device without the others, for what they don't do together."""
        if self.count == 1:
            return self.fabric
        shared = self.fabric.strategy
        precision = copy.deepcopy(shared.precision)  # in fp16 it scales losses, each process by what overflows there
        return Fabric(
            strategy=SingleDeviceStrategy(self.fabric.device, shared.accelerator, precision=precision), devices=1
        )

    def gather(self, thing: Thing) -> list[Thing]:
        """What every process gives, in their order."""
        if self.count == 1:
            return [thing]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, thing)
        return gathered

    def attempt(self, work: Callable[[], Thing]) -> Thing:
        """What `work` gives the first process, who alone does it; its error ends all of them."""
        if not self.first:
            if self.same(False):
                raise Echoed
            return cast(Thing, None)
        try:
            made = work()
        except BaseException:
            self.same(True)
            raise
        self.same(False)
        return made

    def refuse(self, error: Exception) -> Exception:
        """What to raise for an error that every process has met: the first one tells of it."""
        return error if self.first else Echoed()


def alone(recipe: Recipe) -> Ranks:
    """One process on one device, whatever the recipe says."""
    return Ranks(Fabric(accelerator=recipe.device, devices=1, precision=FABRIC_PRECISION[recipe.precision]))


def gather_ranks(recipe: Recipe) -> Ranks:
    """Starts the other processes where nobody else has; device, precision and their number must be settled.

    Only once in a process, which starts its own command again for each of the others. Raises UserError when there
    are fewer devices, or the other machines can't be found.
    """
    if recipe.devices * recipe.nodes == 1:
        return alone(recipe)
    _check_devices(recipe)
    own = None if started_by_others() else LightningEnvironment()
    try:
        fabric = Fabric(
            accelerator=recipe.device,
            devices=recipe.devices,
            num_nodes=recipe.nodes,
            strategy=_data_parallel(),
            precision=FABRIC_PRECISION[recipe.precision],
            plugins=own,
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"{recipe.devices * recipe.nodes} processes can't be brought together: {why}") from error
    return Ranks(fabric)


def _data_parallel() -> DDPStrategy:
    # BatchNorm's statistics are each process's own; Ranks.average brings them together.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    apart: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DDPStrategy(timeout=PATIENCE, gradient_as_bucket_view=True, **apart)


def _check_devices(recipe: Recipe) -> None:
    """Raises UserError for devices that this machine has not got, and for machines that nobody has named."""
    devices = recipe.devices
    flag = named("devices")
    if recipe.device == "mps":
        raise UserError(f"{flag} {devices}: this machine has one GPU; take {flag} 1", "devices")
    if recipe.device == "cuda" and (there := torch.cuda.device_count()) < devices:
        raise UserError(f"{flag} {devices}: this process sees {there} of them; take fewer", "devices")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if recipe.nodes > 1 and missing and not started_by_others():
        raise UserError(
            f"{named('nodes')} {recipe.nodes}: {', '.join(missing)} must say where the others are; start with torchrun "
            f"or srun on every machine, or take {named('nodes')} 1",
            "nodes",
        )


def is_first() -> bool:
    """Whether this process is the one that tells what happens: alone, or the first of several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    if _by_slurm():
        return os.environ["SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def another_ended(error: BaseException) -> UserError | None:
    """What to tell a user when `error` means that another process of the run is gone, else None."""
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return UserError("another of the run's processes ended: its own words say why; 'resume' goes on")
    return None


def started_by_others() -> tuple[int, int] | None:
    """(processes a machine, machines) as torchrun or SLURM started them; None when nobody did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if _by_slurm():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        return int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes, nodes
    return None


def _by_slurm() -> bool:
    """Whether srun started several of this process; a batch script and an interactive shell are no such thing."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and not interactive
