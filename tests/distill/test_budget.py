"""Where the store goes, and whether a step fits, by hand-made room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.config import StorePart
from segskd.distill.caching.budget import Room, Sizes, choose_store, choose_views
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key, PlannedStore
from segskd.distill.running.prepare import prepare
from segskd.distill.training.networks import step_bytes
from segskd.errors import UserError
from segskd.models.build import create
from segskd.models.cut import cut
from segskd.models.stages import StagedNetwork


@pytest.fixture(scope="module")
def network() -> StagedNetwork:
    return cut(create("unet", "resnet10", 3))


@pytest.fixture(scope="module")
def sizes(network: StagedNetwork) -> Sizes:
    return Sizes({"student": network, "teacher": network}, (64, 96), torch.bfloat16)


def test_bytes_of_a_sample(sizes: Sizes) -> None:
    assert sizes.of(IMAGE_KEY) == 3 * 64 * 96 * 2
    assert sizes.of(MASK_KEY) == 64 * 96
    assert sizes.of(Key("teacher", "encoder.0")) == 64 * 32 * 48 * 2


def test_bytes_of_a_sample_in_8_bits(network: StagedNetwork) -> None:
    sizes = Sizes({"student": network, "teacher": network}, (64, 96), torch.bfloat16, bits=8)
    assert sizes.of(Key("teacher", "encoder.0")) == 64 * (32 * 48 + 2 * 4)  # a range a channel
    assert (sizes.of(IMAGE_KEY), sizes.of(MASK_KEY)) == (3 * 64 * 96 * 2, 64 * 96)


def test_old_and_new_tensors_lie_side_by_side(sizes: Sizes) -> None:
    stem, layer1 = Key("student", "encoder.0"), Key("student", "encoder.1")
    content = PlannedStore(10, [frozenset({stem}), frozenset({layer1})], viewed=True)
    assert sizes.most(content, views=3) == 30 * (sizes.of(stem) + sizes.of(layer1))


@pytest.mark.parametrize(
    ("memory", "disk", "kind", "views"),
    [(10**12, 0, "memory", 4), (0, 10**12, "disk", 4), (10**6, 10**6, "recompute", 1), (0, 0, "recompute", 1)],
)
def test_the_store_goes_where_there_is_room(sizes: Sizes, memory: int, disk: int, kind: str, views: int) -> None:
    contents = [PlannedStore(100, [frozenset({Key("teacher", "encoder.0")})], viewed=True)]
    room = Room(memory, disk)
    assert choose_views(sizes, contents, room, 400, 40) == views
    assert choose_store(sizes, contents, views, StorePart(), room).kind == kind


@pytest.mark.parametrize(
    ("images", "epochs", "room", "views"),
    [
        (36, 84, 10**12, 27),  # 27 x 36 = 972
        (36, 10, 10**12, 10),  # an epoch uses one view
        (36, 2, 10**12, 4),
        (367, 40, 10**12, 4),
        (36, 84, 36 * 8, 8),  # in memory alone
        (36, 84, 36 * 2, 1),
    ],
)
def test_few_images_get_more_views(sizes: Sizes, images: int, epochs: int, room: int, views: int) -> None:
    contents = [PlannedStore(images, [frozenset({Key("teacher", "encoder.0")})], viewed=True)]
    a_view = sizes.of(Key("teacher", "encoder.0"))
    assert choose_views(sizes, contents, Room(room * a_view, 0), images, epochs) == views


def test_what_the_recipe_asks_for_is_done(sizes: Sizes) -> None:
    contents = [PlannedStore(100, [frozenset({IMAGE_KEY})], viewed=True)]
    assert choose_store(sizes, contents, 1, StorePart(kind="disk"), Room(10**12, 10**12)).kind == "disk"


def test_a_step_keeps_its_activations(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(), tmp_path)
    first, *_, head = job.phases
    stem = step_bytes(job.on_meta, first, batch=2)
    # The head is a 1x1 convolution from 32 to 3 channels. It is given decoder.4's feature and the mask and keeps the
    # first, its weights, and of the cross-entropy the slope of 3 logits a pixel; then there are four copies of
    # weights and biases. What is left are a few scalars.
    pixels, values = 64 * 96, 3 * 32
    image = pixels * (32 * 4 + 1 + 3 * 4)
    assert step_bytes(job.on_meta, head, batch=2) == pytest.approx(2 * image + 4 * values + 16 * (values + 3), abs=64)
    assert step_bytes(job.on_meta, head, batch=3) - step_bytes(job.on_meta, head, batch=2) == image
    assert step_bytes(job.on_meta, head, batch=1) == pytest.approx(image + 4 * values + 16 * (values + 3), abs=64)
    assert step_bytes(job.on_meta, first, batch=2) == stem


def test_a_step_counts_what_its_loss_keeps(recipe: Callable[..., Any], tmp_path: Path) -> None:
    plain, flows = (prepare(recipe(method=method), tmp_path) for method in ("supervised", "fsp"))
    image = [
        step_bytes(job.on_meta, job.phases[0], batch=3) - step_bytes(job.on_meta, job.phases[0], batch=2)
        for job in (plain, flows)
    ]
    assert image[1] > 1.2 * image[0]


def test_a_size_that_does_not_fit_is_refused_before_training(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--size 16000x16000 with --batch 4 needs about .* GiB"):
        prepare(recipe(data={"size": "16000x16000"}), tmp_path)
