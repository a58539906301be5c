"""The image_statistics: features and entropies worked out by hand, and by segmentation_models_pytorch itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn

from segskd.data.cards import Card, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import read_image
from segskd.errors import UserError
from segskd.evaluate.image_statistics import ImageStatistics, image_statistics
from segskd.models.build import load
from segskd.models.cut import cut
from segskd.models.stages import ChainStage, ChainStep, Features, Stage, StagedNetwork

SIZE = (48, 40)
RED, GREEN = 0, 1


class ColourHead(Stage):
    """Logits are the image's three channels times `factor`; any further output is above all of them."""

    factor = log(2)
    outputs = 3

    def forward(self, x: Tensor, skips: Features, size: tuple[int, int]) -> Tensor:
        logits = skips["encoder.0"] * self.factor
        return torch.cat([logits, *[torch.full_like(logits[:, :1], 9.0)] * (self.outputs - 3)], 1)


def colour_teacher(outputs: int = 3) -> tuple[StagedNetwork, list[int]]:
    """A teacher whose deepest feature is the image's mean over 32x32 pixels, and the batches that it has seen."""
    model = nn.Module()
    model.segmentation_head = nn.Sequential(nn.Conv2d(3, outputs, 1))
    model.pool = nn.AvgPool2d(32)
    model.config = {"encoder_name": "colours"}  # type: ignore[assignment]
    seen: list[int] = []
    model.pool.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    head = ColourHead("head", ["encoder.1", "encoder.0"])
    head.outputs = outputs
    stages = [
        ChainStage("encoder.0", ["image"], [], model),
        ChainStage("encoder.1", ["encoder.0"], [ChainStep("pool")], model),
        head,
    ]
    return StagedNetwork(model, stages), seen


@pytest.fixture
def pairs(make_pair: Callable[..., Pair]) -> list[Pair]:
    """An image all red, and one whose lower half is green; nobody may ask for the masks."""
    red = np.full(SIZE, RED)
    half = red.copy()
    half[24:] = GREEN
    made = [make_pair("red", red, red), make_pair("half", half, red)]
    for pair in made:
        pair.mask.unlink()
    return made


def ask(pairs: list[Pair], card: Card, folder: Path, outputs: int = 3, **more: Any) -> ImageStatistics:
    return image_statistics(colour_teacher(outputs)[0], card, pairs, SIZE, "cpu", folder, **more)


def test_features_and_entropies_by_hand(pairs: list[Pair], make_card: Callable[..., Card], tmp_path: Path) -> None:
    found = ask(pairs, make_card(), tmp_path)
    assert found.names == ("red", "half")
    assert found.features.dtype == found.entropy.dtype == np.float32
    # 48x40 pixels padded with zeros to 64x64
    share = 48 * 40 / 64**2
    np.testing.assert_allclose(found.features, [[share, 0, 0], [share / 2, share / 2, 0]], rtol=1e-6)
    # the softmax is 1/2, 1/4, 1/4 at every pixel of an image: ½ ln 2 + ½ ln 4; the padding would be at ln 3
    np.testing.assert_allclose(found.entropy, [1.5 * log(2)] * 2, rtol=1e-6)


def test_a_teacher_that_knows_nothing_has_ln_c(make_pair: Callable[..., Pair], make_card: Callable[..., Card]) -> None:
    pair = make_pair("blank", [[RED]], [[RED]])
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(pair.image)
    found = ask([pair], make_card(), pair.image.parent)
    np.testing.assert_allclose(found.entropy, [log(3)], rtol=1e-6)
    assert found.features.tolist() == [[0, 0, 0]]


def test_an_output_at_the_ignore_index_is_no_answer(
    pairs: list[Pair], make_card: Callable[..., Card], tmp_path: Path
) -> None:
    found = ask(pairs, make_card(ignore_index=3), tmp_path, outputs=4)
    np.testing.assert_allclose(found.entropy, [1.5 * log(2)] * 2, rtol=1e-6)
    with pytest.raises(UserError, match="4"):
        ask(pairs, make_card(), tmp_path, outputs=4)


def test_the_network_runs_once(pairs: list[Pair], make_card: Callable[..., Card], tmp_path: Path) -> None:
    teacher, seen = colour_teacher()
    told: list[tuple[int, int]] = []

    def asked(card: Card, size: tuple[int, int] = SIZE, images: list[Pair] = pairs) -> ImageStatistics:
        seen.clear()
        return image_statistics(teacher, card, images, size, "cpu", tmp_path / "kept", lambda *done: told.append(done))

    first = asked(make_card())
    assert (seen, told) == ([2], [(2, 2)])
    again = asked(make_card())
    assert (seen, told) == ([], [(2, 2)])
    assert again.names == first.names
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.entropy, first.entropy)
    # another card, another size, other images
    for changed in ({"card": make_card(mean=[0.5, 0, 0])}, {"card": make_card(), "size": (32, 32)}):
        asked(**changed)
        assert seen == [2]
    assert asked(make_card(), images=pairs[1:]).names == ("half",)
    assert seen == [1]
    # none of these took the place of the first
    asked(make_card())
    assert seen == []
    # an image that changed, or was touched
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(pairs[1].image)
    assert asked(make_card()).features[1].tolist() == [0, 0, 0]
    os.utime(pairs[0].image, ns=(0, 0))
    asked(make_card())
    assert seen == [2]
    # another teacher
    with torch.no_grad():
        next(teacher.model.parameters()).add_(1)
    asked(make_card())
    assert seen == [2]
    # a file cut short
    for path in (tmp_path / "kept").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-30])
    asked(make_card())
    assert seen == [2]


def test_batches_shrink_with_the_size(make_pair: Callable[..., Pair], make_card: Callable[..., Card]) -> None:
    pair = make_pair("one", [[RED, GREEN]], [[RED, RED]])
    images = [Pair(str(number), pair.image, pair.mask) for number in range(10)]
    for size, batches in {(32, 32): [8, 2], (512, 1024): [4, 4, 2]}.items():
        teacher, seen = colour_teacher()
        found = image_statistics(teacher, make_card(), images, size, "cpu", pair.image.parent / "kept")
        assert seen == batches
        assert found.names == tuple(map(str, range(10)))


def test_a_network_as_its_own_library_runs_it(
    data: Path, card_path: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    card = load_card(card_path)
    pairs = list_pairs(card, data, "train")
    found = image_statistics(load(teacher_folder).train(), card, pairs, (64, 96), "cpu", tmp_path)
    model = smp.from_pretrained(teacher_folder).eval()
    pixels = np.stack([read_image(pair.image, card) for pair in pairs]) / 255
    images = torch.from_numpy((pixels - card.mean) / card.std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        features, logits = model.encoder(images)[-1].mean((2, 3)), model(images)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy().mean((1, 2))
    np.testing.assert_allclose(found.features, features, atol=1e-4 * float(features.abs().max()))
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-4)
    assert found.features.shape == (12, 96)
    # the cut network is the same teacher
    again = image_statistics(
        cut(load(teacher_folder)), card, pairs, (64, 96), "cpu", tmp_path, lambda *done: pytest.fail("asked again")
    )
    np.testing.assert_array_equal(again.features, found.features)


def test_teachers_and_images_that_say_nothing(
    pairs: list[Pair], make_card: Callable[..., Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ColourHead, "factor", float("nan"))
        with pytest.raises(UserError, match="outputs for images such as 'red' aren't finite numbers"):
            ask(pairs, make_card(), tmp_path)
    pairs[1].image.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"can't read image .*half\.png"):
        ask(pairs, make_card(), tmp_path)
    assert not list(tmp_path.glob("*.npz"))
