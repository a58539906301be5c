"""The processes that train one run together, one a device, each on its own part of the images.

This program starts as many as the recipe's `devices` and `nodes` say, unless torchrun or SLURM has started them.
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
from segskd.devices import by_slurm, started_by_others
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import Phase
from segskd.errors import EndedByFirstProcess, UserError, plural

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would print its precision each time
# Lightning sets it for processes that fork, which nothing here does. With it each step of an optimiser looks for GPUs,
# which takes 2 ms where there is none.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
FABRIC_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
WAIT = timedelta(hours=6)
"""How long processes wait for one another: the first may ask the teacher about many images."""
Thing = TypeVar("Thing")


class Ranks:
    """This process among those that work on a run. All of them call every method at once, except `part`."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.number = fabric.global_rank
        self.count = fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and reports what happens."""
        return self.number == 0

    def part(self, things: Sequence[Thing]) -> list[Thing]:
        """This process's share of a list that is the same in all of them."""
        return list(things[self.number :: self.count])

    def same(self, thing: Thing) -> Thing:
        """The first process's value, in every process."""
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
        """Averages running statistics over the processes, each of which saw other images."""
        if self.count == 1:
            return
        training = [module for module in modules if module.training]
        buffers = [buffer for module in training for buffer in module.buffers() if buffer.is_floating_point()]
        if buffers:
            means = self.add(torch.cat([buffer.flatten() for buffer in buffers])) / self.count
            for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def spread(self, tensors: Iterable[Tensor], source: int) -> None:
        """Copies the values of these tensors from process `source` to all others."""
        if self.count > 1:
            for tensor in tensors:
                values = tensor.contiguous()
                torch.distributed.broadcast(values, source)
                tensor.copy_(values)

    @cached_property
    def own(self) -> Fabric:
        """A Fabric of this process alone, on its device, for what the processes don't do together."""
        if self.count == 1:
            return self.fabric
        shared = self.fabric.strategy
        precision = copy.deepcopy(shared.precision)  # in fp16 it scales losses, in each process otherwise
        return Fabric(
            strategy=SingleDeviceStrategy(self.fabric.device, shared.accelerator, precision=precision), devices=1
        )

    def gather(self, thing: Thing) -> list[Thing]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [thing]
        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, thing)
        return gathered

    def attempt(self, work: Callable[[], Thing]) -> Thing:
        """Does `work` in the first process only, which gets its result; an error ends all processes."""
        if not self.first:
            if self.same(False):
                raise EndedByFirstProcess
            return cast(Thing, None)
        try:
            made = work()
        except BaseException:
            self.same(True)
            raise
        self.same(False)
        return made

    def refuse(self, error: Exception) -> Exception:
        """The exception to raise for an error that every process has met, of which only the first one tells."""
        return error if self.first else EndedByFirstProcess()


def alone(recipe: Recipe) -> Ranks:
    """One process on one device, whatever the recipe says."""
    return Ranks(Fabric(accelerator=recipe.device, devices=1, precision=FABRIC_PRECISION[recipe.precision]))


def gather_ranks(recipe: Recipe) -> Ranks:
    """Starts the run's other processes, unless torchrun or SLURM has; the recipe must be settled for this machine.

    A process may call this once only: it starts its own command again for each of the others. Raises UserError when
    there are fewer devices, or the other machines can't be found.
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
    own_buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DDPStrategy(timeout=WAIT, gradient_as_bucket_view=True, **own_buffers)


def _check_devices(recipe: Recipe) -> None:
    """Raises UserError when this machine has fewer devices, or nothing says where the other machines are."""
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
    """Whether this process reports what happens: it is the only one, or the first of several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    if by_slurm():
        return os.environ["SLURM_PROCID"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def another_ended(error: BaseException) -> UserError | None:
    """The UserError to raise when `error` means that another process of the run has ended, else None."""
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return UserError("another process of the run ended, and has said why; 'resume' goes on")
    return None


def check_batch(recipe: Recipe, subset: Subset, ranks: Ranks) -> None:
    """Raises UserError when a process would have fewer than two images a step, which batch normalisation needs."""
    least = 2 * ranks.count
    trained = min(len(subset.train), len(subset.labelled) or len(subset.train))
    if ranks.count > 1 and min(recipe.optimisation.batch, trained) < least:
        raise UserError(
            f"{ranks.count} processes need a {named('optimisation.batch')} of {least} at least and as many images with "
            f"labels; these are {recipe.optimisation.batch} and {trained}: take fewer {named('devices')}",
            "devices",
        )


def check_sync(recipe: Recipe, phases: Sequence[Phase], ranks: Ranks) -> None:
    """Raises UserError when batch normalisation is to see the images of other devices, and can't."""
    if not recipe.sync_batchnorm:
        return
    if not can_sync(recipe):
        here = f"is for several GPUs, and this run has {_devices(recipe)}: leave it out"
        raise UserError(f"{named('sync_batchnorm')} {here}", "sync_batchnorm")
    placed = next((phase.name for phase in phases if phase.placed_on(ranks.count)), None)
    if placed:
        raise UserError(
            f"phase '{placed}' trains each stage on one GPU, with whole batches: leave {named('sync_batchnorm')} out",
            "sync_batchnorm",
        )


def can_sync(recipe: Recipe) -> bool:
    """Whether the run has other GPUs whose images batch normalisation could see; the recipe must be settled."""
    return recipe.device == "cuda" and recipe.devices * recipe.nodes > 1


def _devices(recipe: Recipe) -> str:
    return plural(recipe.devices * recipe.nodes, f"{recipe.device} device")
