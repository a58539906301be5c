"""Flags that several commands share, and what they change in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from segskd.errors import UserError

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object as the last line of standard output.")]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class DataFlags:
    """What to train on."""

    dataset: str | None = None
    """A card's name, or the path of a card."""
    data: str | None = None
    """Where datasets lie (SEGSKD_DATA, else datasets/)."""
    size: str | None = None
    """HEIGHTxWIDTH that images are resized to (192x256)."""
    views: int | None = None
    """Augmentations of each image (4, or 1 where no store has room)."""
    fraction: float | None = None
    """Share of the training images, above 0 and at most 1."""
    count: int | None = None
    """Number of training images, instead of a fraction."""
    rule: Literal["random", "balanced", "diverse", "hardest", "hand"] | None = None
    """Drawn; rare classes first; unlike each other, or hardest, in the teacher's eyes; by name (random)."""
    images: float | None = None
    """The same as --fraction: share of the training images that teacher and student see."""
    labels: float | None = None
    """Share of the training images whose labels are used; 0 learns from the teacher alone (all of the chosen)."""
    unlabelled: Path | None = None
    """A folder of further images, without masks, that the student sees as the teacher does."""
    names: Path | None = None
    """A file with the images' names, one a line, such as a run's subset.txt; the rule is then hand."""


@dataclass(frozen=True)
class TeacherFlags:
    """What a teacher is that is given as a file of weights, and whether it is looked at first."""

    arch: str | None = None
    """Of a teacher that is a file of weights (.pth, .pt, .ckpt, .safetensors): unet …, or torchvision's
    deeplabv3_resnet50, deeplabv3_resnet101, deeplabv3_mobilenet_v3_large, fcn_resnet50, fcn_resnet101 or
    lraspp_mobilenet_v3_large."""
    encoder: str | None = None
    """Encoder of such a teacher, such as resnet34; torchvision's have theirs in their names."""
    classes: int | None = None
    """Outputs of such a teacher (as many as its weights tell)."""
    trust_teacher: bool | None = None
    """Take the teacher without a look at its answers to a few labelled images first (False)."""


@dataclass(frozen=True)
class TrainFlags:
    """How to train."""

    epochs: int | None = None
    """Epochs a stage (by the number of images)."""
    batch: int | None = None
    """Images a step (8)."""
    lr: float | None = None
    """Peak learning rate (0.01; 0.001 to teach)."""
    weight_decay: float | None = None
    """L2 penalty (0)."""
    patience: int | None = None
    """Shorten a stage that learns without labels once its loss fell by less than 1 % in so many epochs; 0: never,
    and train stages that equal the teacher's, too (such stages alone are left out)."""
    select: Literal["last", "best"] | None = None
    """Which epoch's weights a phase keeps (last)."""
    select_on: Literal["holdout", "val"] | None = None
    """What "best" is measured on: a fifth of the subset, or val (holdout)."""
    seed: int | None = None
    """Decides the subset, the views, the first weights and the order (0)."""
    device: Device | None = None
    """Where to train (auto)."""
    precision: Literal["auto", "32", "bf16", "fp16"] | None = None
    """Arithmetic: auto takes bf16 where the hardware multiplies it."""
    threads: int | None = None
    """CPU threads (all cores, shared out among the processes)."""
    devices: int | None = None
    """Processes on each machine, one a GPU or a share of the cores (1, or as torchrun or SLURM started them)."""
    nodes: int | None = None
    """Machines (1, or as torchrun or SLURM started them)."""
    sync_batchnorm: bool | None = None
    """Let batch normalisation see the images of all GPUs in a step, not of each by itself (False)."""
    store: Literal["auto", "memory", "disk", "recompute"] | None = None
    """Where features are kept (what has room)."""
    store_budget: float | None = None
    """GiB of memory for features (half of what is free)."""
    store_bits: Literal[8] | None = None
    """8: features are kept in a byte a value (as they are computed)."""
    checkpoint_seconds: float | None = None
    """Least time between saves inside a phase (30)."""


NO_DATA_FLAGS, NO_TRAIN_FLAGS, NO_TEACHER_FLAGS = DataFlags(), TrainFlags(), TeacherFlags()


def teacher_place(teacher: str | None, flags: TeacherFlags) -> str | None:
    """Where the teacher lies: a file of weights is made a folder among the runs first, anything else is as it is.

    Raises UserError when the flags don't say which network a file is for, or say it of something that is no file.
    """
    file = Path(teacher).expanduser() if teacher else None
    named = (flags.arch, flags.encoder, flags.classes) != (None, None, None)
    if file is None or not file.is_file():
        if named:
            given = f"{teacher} is none" if teacher else "there is no --teacher"
            raise UserError(f"--arch, --encoder and --classes are for a teacher that is a file of weights, and {given}")
        return teacher
    from segskd.models.importing import NetworkSpec, import_teacher, needs_network
    from segskd.runs import IMPORTED, runs_folder

    if flags.arch is None:
        raise UserError(needs_network(file))
    asked = NetworkSpec(flags.arch, flags.encoder, flags.classes)
    return str(import_teacher(file, asked, runs_folder() / IMPORTED))


def recipe_changes(data: DataFlags, train: TrainFlags) -> dict[str, Any]:
    """The flags that were given, as parts of a recipe."""
    return {
        "data": {
            "card": data.dataset,
            "folder": data.data,
            "size": data.size,
            "views": data.views,
            "unlabelled": _absolute(data.unlabelled),
        },
        "subset": _subset_changes(data),
        "optimisation": {
            "epochs": train.epochs,
            "batch": train.batch,
            "lr": train.lr,
            "weight_decay": train.weight_decay,
            "patience": train.patience,
        },
        "store": {"kind": train.store, "budget_gib": train.store_budget, "bits": train.store_bits},
        "select": train.select,
        "select_on": train.select_on,
        "checkpoint_seconds": train.checkpoint_seconds,
        "seed": train.seed,
        "device": train.device,
        "precision": train.precision,
        "threads": train.threads,
        "devices": train.devices,
        "nodes": train.nodes,
        "sync_batchnorm": train.sync_batchnorm,
    }


def _absolute(folder: Path | None) -> str | None:
    return None if folder is None else str(folder.expanduser().resolve())


def _fraction(data: DataFlags) -> float | None:
    if None not in (data.fraction, data.images) and data.fraction != data.images:
        raise UserError("--fraction and --images are the same: give one of them")
    return data.images if data.fraction is None else data.fraction


def replaced_in_subset(data: DataFlags) -> list[str]:
    """Fields of a recipe's subset that a flag given beside the recipe takes the place of."""
    given = {
        "fraction": data.count is not None or data.names is not None,
        "count": _fraction(data) is not None or data.names is not None,
        "names": data.rule not in (None, "hand"),
    }
    return [field for field, replaced in given.items() if replaced]


def _subset_changes(data: DataFlags) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "fraction": _fraction(data),
        "count": data.count,
        "rule": data.rule,
        "labels": data.labels,
    }
    if data.names is not None:
        from segskd.data.subset import read_names

        changes |= {"rule": data.rule or "hand", "names": read_names(data.names)}
    return changes
