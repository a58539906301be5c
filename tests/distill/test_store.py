"""The feature store against running the whole networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key
from segskd.distill.caching.rows import EightBitRows, in_memory
from segskd.distill.caching.store import FeatureStore, Kind
from segskd.distill.running.prepare import prepare
from segskd.distill.training.job import Job
from segskd.errors import UserError
from segskd.models.stages import freeze

EVERY_SECOND = torch.tensor([5, 1, 3])


@pytest.fixture
def job(recipe: Callable[..., Any], tmp_path: Path) -> Job:
    made = prepare(recipe(), tmp_path)
    freeze([made.student.model])
    return made


def store_of(job: Job, kind: Kind, folder: Path) -> FeatureStore:
    store = job.feature_store(job.subset.train, 2, folder)
    store.kind = kind
    return store


@torch.no_grad()
def whole(job: Job, numbers: torch.Tensor) -> dict[Key, torch.Tensor]:
    """Every feature of both networks for these samples, from the images."""
    images, masks = job.feature_store(job.subset.train, 2, Path()).samples.load(numbers.tolist())
    values = {IMAGE_KEY: images, MASK_KEY: masks}
    assert job.teacher is not None
    values |= {Key("student", n): t for n, t in job.student.run({"image": images}, job.size).items()}
    return values | {Key("teacher", n): t for n, t in job.teacher.run({"image": images}, job.size).items()}


@pytest.mark.parametrize("kind", ["memory", "disk", "recompute"])
def test_every_phase_gets_what_the_whole_networks_would_give(job: Job, kind: Kind, tmp_path: Path) -> None:
    store = store_of(job, kind, tmp_path / "store")
    expected = whole(job, EVERY_SECOND)
    for phase, wanted in zip(job.phases, job.plan.contents.train, strict=True):
        store.advance(wanted)
        batch = store.batch(EVERY_SECOND)
        assert batch.tensors.keys() == wanted, phase.name
        for key, value in batch.tensors.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4)


def test_advancing_runs_each_frozen_stage_once_a_sample(job: Job, tmp_path: Path) -> None:
    assert job.teacher is not None
    seen: dict[tuple[str, str], int] = {}

    def count(owner: str, name: str) -> Callable[..., None]:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
            seen[owner, name] = seen.get((owner, name), 0) + len(inputs[0])

        return hook

    for owner, network in (("student", job.student), ("teacher", job.teacher)):
        for name, stage in network.stages.items():
            stage.register_forward_hook(count(owner, name))
    store = store_of(job, "memory", tmp_path)
    for wanted in job.plan.contents.train:
        store.advance(wanted)
        store.batch(EVERY_SECOND)
    samples = 2 * 12
    # the student's decoder.4 is the last stage that feeds a phase; its head is what that phase trains
    assert {key: n for key, n in seen.items() if n != samples} == {}
    assert ("student", "head") not in seen
    assert ("teacher", "head") not in seen
    assert len(seen) == 20


def test_bytes_are_those_that_were_reckoned(job: Job, tmp_path: Path) -> None:
    store = store_of(job, "memory", tmp_path)
    store.advance(job.plan.contents.train[-1])
    # decoder.4 (16 channels) in fp32 and the mask in uint8, at 64x96, two views of twelve images
    assert store.bytes == 24 * (16 * 64 * 96 * 4 + 64 * 96)


def test_a_store_on_disk_leaves_nothing_behind(job: Job, tmp_path: Path) -> None:
    store = store_of(job, "disk", tmp_path / "store")
    store.advance(job.plan.contents.train[3])
    files = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert files == sorted(f"{key.network}-{key.name}.bin" for key in job.plan.contents.train[3])
    store.close()
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_told_before_anything_is_mapped(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        store_of(job, "disk", tmp_path / "store").advance(job.plan.contents.train[0])


@pytest.fixture
def coded(recipe: Callable[..., Any], tmp_path: Path) -> Job:
    made = prepare(recipe(store={"bits": 8}), tmp_path)
    freeze([made.student.model])
    return made


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_features_in_8_bits_are_half_a_step_off_at_most(coded: Job, kind: Kind, tmp_path: Path) -> None:
    store = store_of(coded, kind, tmp_path / "store")
    store.advance(coded.plan.contents.train[0])
    batch, expected = store.batch(EVERY_SECOND), whole(coded, EVERY_SECOND)
    torch.testing.assert_close(batch.tensors[IMAGE_KEY], expected[IMAGE_KEY], rtol=0.0, atol=0.0)
    key = Key("teacher", "encoder.0")
    feature = expected[key]
    step = (feature.amax((2, 3), keepdim=True) - feature.amin((2, 3), keepdim=True)) / 255
    error = (batch.tensors[key] - feature).abs()
    assert (error <= 0.5 * step + 1e-5).all()
    assert error.max() > 0.1 * step.max()  # it was kept in few bits indeed
    assert (batch.tensors[key][feature == 0] == 0).all()
    assert batch.tensors[key].is_contiguous(memory_format=torch.channels_last)
    assert store.bytes == 24 * (64 * (32 * 48 + 2 * 4) + 3 * 64 * 96 * 4 + 64 * 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_8_bits_add_nothing_to_the_rounding_of_the_features_own_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (torch.rand(2, 8, 8, 3) / 1000).to(dtype)
    kept = EightBitRows(in_memory, (2, 8, 8, 3), dtype)
    kept.write(torch.tensor([0, 1]), rows)
    back = kept.decoded(kept.read(lambda part: part))
    step = (rows.float().amax((1, 2), keepdim=True) - rows.float().amin((1, 2), keepdim=True)) / 255
    assert back.dtype == dtype
    rounding = torch.finfo(dtype).eps * rows.float().abs() + 1e-7
    assert ((back.float() - rows.float()).abs() <= 0.51 * step + rounding).all()


def test_a_channel_of_one_value_keeps_it() -> None:
    kept = EightBitRows(in_memory, (4, 2, 3, 1), torch.float32)
    kept.write(torch.tensor([2]), torch.full((1, 2, 3, 1), -0.3))
    assert (kept.decoded(kept.read(lambda rows: rows[[2]])) == torch.tensor(-0.3)).all()


def test_bf16_features_are_stored_as_they_come(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(precision="bf16"), tmp_path)
    freeze([job.student.model])
    store = store_of(job, "memory", tmp_path)
    store.advance(job.plan.contents.train[1])
    feature = store.batch(EVERY_SECOND).tensors[Key("teacher", "encoder.1")]
    assert feature.dtype == torch.bfloat16
    assert feature.is_contiguous(memory_format=torch.channels_last)
