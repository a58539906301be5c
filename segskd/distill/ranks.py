"""The processes that train one run together, one a device, each on its own part of the images.

They are started by the recipe's `devices` and `nodes`, by torchrun or by SLURM; Lightning Fabric tells which.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from segskd.config import Recipe
from segskd.errors import Echoed, UserError

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would tell of its precision each time
FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
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
        buffers = [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]
        if buffers:
            means = self.add(torch.cat([buffer.flatten() for buffer in buffers])) / self.count
            for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def gather(self, thing: Thing) -> list[Thing]:
        """What every process gives, in their order."""
        if self.count == 1:
            return [thing]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, thing)
        return gathered

    def in_turn(self, first: Callable[[], Thing], others: Callable[[], Thing]) -> Thing:
        """What `first` gives the first process, and then what `others` gives the others; its error ends them all."""
        if not self.first:
            if self.same(False):
                raise Echoed
            return others()
        try:
            made = first()
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
    """Starts the other processes where nobody else has; device and precision must be settled.

    Only once in a process, which starts its own command again for each of the others. Raises UserError when there
    are fewer devices.
    """
    devices, nodes = started_by_others() or (recipe.devices, recipe.nodes)
    if devices * nodes == 1:
        return alone(recipe)
    if recipe.device == "mps":
        raise UserError(f"--devices {devices}: this machine has one GPU; leave --devices out")
    if recipe.device == "cuda" and (there := torch.cuda.device_count()) < devices:
        raise UserError(f"--devices {devices}: this machine has {there}; take fewer")
    # BatchNorm's statistics are each process's own; Ranks.average brings them together.
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    fabric = Fabric(
        accelerator=recipe.device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=FABRIC_PRECISION[recipe.precision],
    )
    fabric.launch()
    return Ranks(fabric)


def is_first() -> bool:
    """Whether this process is the one that tells what happens: alone, or the first of several."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0


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
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    if "SLURM_PROCID" in os.environ and tasks > 1:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return tasks // nodes, nodes
    return None
