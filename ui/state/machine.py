"""The hardware of this machine, for the Start tab."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from segskd.devices import choose_device, choose_precision, free_device_memory, free_memory

GIB = 2**30


def machine(runs: Path) -> dict[str, Any]:
    """Device, precision, and free memory and disk in GiB."""
    device = choose_device("auto")
    place = next(parent for parent in (runs, *runs.parents) if parent.exists())
    return {
        "device": _name(device),
        "gpu": device != "cpu",
        "cores": os.cpu_count(),
        "precision": choose_precision("auto", device),
        "memory": free_memory() / GIB,
        "device_memory": free_device_memory(torch.device(device)) / GIB if device == "cuda" else None,
        "disk": shutil.disk_usage(place).free / GIB,
    }


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return {"mps": "Apple GPU", "cpu": f"processor, {os.cpu_count()} cores"}[device]
