"""Tiles: where they lie, how they are weighed, and that blending them leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.errors import UserError
from segskd.evaluate import memory, tiles
from segskd.evaluate.comparison import compare
from segskd.evaluate.memory import pass_bytes
from segskd.evaluate.predictions import Predictions
from segskd.evaluate.predictor import Predictor, evaluate, predict_files, predict_pairs
from segskd.evaluate.tiles import Tiles, blended, choose_tiles, strips

MakePair = Callable[[str, Any, Any], Pair]


@pytest.fixture
def card(make_card: Callable[..., Card]) -> Card:
    return make_card()


# -- what is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "overlap", "chosen"),
    [
        ("512x512", None, Tiles((512, 512), 128)),
        ("192x256", None, Tiles((192, 256), 64)),  # a quarter of 192 is 48
        ("180x250", 33, Tiles((192, 256), 64)),
        ("64x64", 0, Tiles((64, 64), 0)),
        ("64x96", 32, Tiles((64, 96), 32)),
    ],
)
def test_tile_and_overlap_are_rounded_up_to_the_grid(tile: str, overlap: int | None, chosen: Tiles) -> None:
    assert choose_tiles(tile, overlap) == chosen


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (None, 32, "--overlap needs the size of the tiles: add --tile"),
        ("512", None, "--tile: '512' is not a size"),
        ("512x20000", None, "--tile: size 512x20000 must lie between"),
        ("32x512", None, "tiles of less than 64x64 are too small to overlap"),
        ("128x256", 128, "--overlap 128 must lie between 0 and 96 for tiles of 128x256"),
        ("128x256", -1, "--overlap -1 must lie between 0 and 96"),
    ],
)
def test_what_is_no_tiling(tile: str | None, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_tiles(tile, overlap)
    assert choose_tiles(None, None) is None


# -- places and weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "side", "overlap", "places"),
    [
        (96, 128, 32, [(0, 96)]),
        (128, 128, 32, [(0, 128)]),
        (160, 128, 32, [(0, 128), (32, 160)]),
        (224, 128, 32, [(0, 128), (96, 224)]),
        # Two tiles reach 224 at most; three share the room of 128 evenly.
        (256, 128, 32, [(0, 128), (64, 192), (128, 256)]),
        (256, 128, 0, [(0, 128), (128, 256)]),
        # Room of 192 in three steps of at most 96
        (320, 128, 32, [(0, 128), (96, 224), (192, 320)]),
        # Room of 224 = 7 · 32 in three steps: 2, 4 and 7
        (352, 128, 32, [(0, 128), (64, 192), (128, 256), (224, 352)]),
    ],
)
def test_places_by_hand(length: int, side: int, overlap: int, places: list[tuple[int, int]]) -> None:
    assert [(strip.start, strip.stop) for strip in strips(length, side, overlap)] == places


def test_any_axis_is_covered_with_enough_overlap() -> None:
    for length in range(32, 1057, 32):
        for side, overlap in ((64, 0), (64, 32), (160, 64), (256, 224)):
            found = strips(length, side, overlap)
            assert (found[0].start, found[-1].stop) == (0, length)
            gaps = [one.stop - other.start for one, other in itertools.pairwise(found)]
            assert all(gap >= overlap for gap in gaps)
            assert all(strip.start % 32 == 0 for strip in found)


def test_weights_by_hand() -> None:
    # Tiles [0, 64) and [32, 96): alone up to 32, then one fades from 31.5 / 32 while the other grows from 0.5 / 32.
    left, right = strips(96, 64, 32)
    fade = (torch.arange(32) + 0.5) / 32
    assert torch.allclose(left.weights, torch.cat([torch.ones(32), fade.flip(0)]))
    assert torch.allclose(right.weights, torch.cat([fade, torch.ones(32)]))


def test_weights_of_all_tiles_sum_to_one() -> None:
    total = torch.zeros(352)
    for strip in strips(352, 128, 32):
        total[strip.start : strip.stop] += strip.weights
    assert torch.allclose(total, torch.ones(352), atol=1e-6)


# -- blending -----------------------------------------------------------------------------------------


def test_a_constant_answer_stays_constant() -> None:
    def answer(tile: Tensor) -> Tensor:
        return torch.tensor([3.0, -7.0])[:, None, None].expand(len(tile), 2, *tile.shape[-2:])

    made = blended(answer, torch.zeros(2, 3, 160, 224), Tiles((64, 96), 32))
    assert made.shape == (2, 2, 160, 224)
    assert torch.allclose(made, torch.tensor([3.0, -7.0])[:, None, None].expand_as(made), atol=1e-5)


def test_a_network_of_single_pixels_answers_by_tiles_as_whole() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).requires_grad_(False)
    images = torch.randn(3, 3, 128, 192)
    seen: list[torch.Size] = []

    def answer(part: Tensor) -> Tensor:
        seen.append(part.shape)
        out: Tensor = network(part)
        return out

    assert torch.allclose(blended(answer, images, Tiles((64, 64), 32)), network(images), atol=1e-5)
    # Three rows of five tiles in each of three images, of 4096 pixels: fewer than go through at once
    assert seen == [(45, 3, 64, 64)]


def test_blended_answers_by_hand() -> None:
    # Each tile answers where it begins: in row 0 tile 0 says 0 and tile 1 says 32, blended in between.
    def answer(part: Tensor) -> Tensor:
        return part[:, :, :1, :1].expand_as(part)

    image = torch.arange(96.0).expand(1, 1, 64, 96)
    made = blended(answer, image, Tiles((64, 64), 32))[0, 0, 0]
    assert torch.allclose(made, torch.cat([torch.zeros(32), torch.arange(32) + 0.5, torch.full((32,), 32.0)]))


def test_large_tiles_go_one_by_one() -> None:
    seen: list[torch.Size] = []

    def answer(part: Tensor) -> Tensor:
        seen.append(part.shape)
        return part

    blended(answer, torch.zeros(1, 1, 1056, 1024), Tiles((1024, 1024), 32))
    assert seen == [(1, 1, 1024, 1024)] * 2


# -- through the predictor ----------------------------------------------------------------------------


def test_one_tile_is_a_whole_pass_bit_for_bit(network: Any, card: Card, make_pair: MakePair) -> None:
    seen = np.random.default_rng(0).integers(0, 3, (45, 61))
    pair = make_pair("a", seen, seen)
    one, tiled = network(), network()
    (_, whole, _), *_ = predict_pairs(Predictor(one, card, (45, 61)), [pair])
    (_, covered, _), *_ = predict_pairs(Predictor(tiled, card, (45, 61), tiles=Tiles((64, 64), 32)), [pair])
    assert torch.equal(whole, covered)
    assert one.seen == tiled.seen == [(1, 3, 64, 64)]


def test_tiles_of_a_padded_image(network: Any, card: Card, make_pair: MakePair) -> None:
    seen = np.random.default_rng(0).integers(0, 3, (100, 140))
    pair = make_pair("a", seen, seen)
    stub = network()
    predictor = Predictor(stub, card, (100, 140), tiles=Tiles((64, 96), 32))
    (_, logits, _masks), *_ = predict_pairs(predictor, [pair])
    (_, whole, _), *_ = predict_pairs(Predictor(network(), card, (100, 140)), [pair])
    # 128x160 padded: rows 0, 32 and 64, columns 0 and 64
    assert stub.seen == [(6, 3, 64, 96)]
    assert logits.shape == (1, 3, 100, 140)
    assert torch.allclose(logits, whole, atol=1e-5)
    assert evaluate(predictor, [pair]).miou == 1.0


def test_a_surplus_output_is_dropped_from_tiles(network: Any, make_card: Callable[..., Card], make_pair: Any) -> None:
    seen = np.random.default_rng(0).integers(0, 3, (96, 96))
    predictor = Predictor(network(surplus=True), make_card(ignore_index=3), (96, 96), tiles=Tiles((64, 64), 32))
    assert evaluate(predictor, [make_pair("a", seen, seen)]).miou == 1.0


def test_images_at_their_own_size(network: Any, card: Card, make_pair: MakePair, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks = [random.integers(0, 3, size) for size in ((40, 100), (130, 70), (40, 100))]
    pairs = [make_pair(name, seen, seen) for name, seen in zip("abc", masks, strict=True)]
    stub = network()
    predictor = Predictor(stub, card, None, tiles=Tiles((96, 96), 32))
    score = evaluate(predictor, pairs)
    # 64x128: two tiles that are 64 high; 160x96: two tiles
    assert stub.seen == [(2, 3, 64, 96), (2, 3, 96, 96), (2, 3, 64, 96)]
    assert (score.miou, score.images) == (1.0, 3)
    assert evaluate(predictor, pairs, native=True).miou == 1.0
    written, _ = predict_files(predictor, [pair.image for pair in pairs], tmp_path / "out")
    for path, seen in zip(written, masks, strict=True):
        assert np.asarray(Image.open(path)).tolist() == seen.tolist()
    with pytest.raises(RuntimeError, match="its own size"):
        predictor.view  # noqa: B018


def test_two_networks_on_images_at_their_own_size(network: Any, card: Card, make_pair: Any, tmp_path: Path) -> None:
    pairs = [make_pair("a", [[0] * 70] * 40, [[0] * 70] * 40), make_pair("b", [[2] * 40] * 70, [[2] * 40] * 70)]
    teacher, student = (Predictor(network(answers), card, None) for answers in ((0, 1, 2), (0, 1, 1)))
    found = compare(teacher, student, pairs, tmp_path / "out")
    assert found.support == {"red": 2800, "green": 0, "blue": 2800}
    assert (found.teacher.miou, [image.name for image in found.images]) == (1.0, ["b", "a"])
    with Image.open(tmp_path / "out/agreement/b.png") as picture:
        assert picture.size == (40, 70)


def test_predictions_by_tiles_are_kept_apart(network: Any, card: Card, make_pair: MakePair, tmp_path: Path) -> None:
    pairs = [make_pair("a", [[0] * 96] * 96, [[0] * 96] * 96)]
    whole, tiled = (Predictor(network(), card, (96, 96), tiles=by) for by in (None, Tiles((64, 64), 32)))
    kept = [Predictions(one, other, pairs, tmp_path) for one, other in ((whole, whole), (tiled, whole), (whole, tiled))]
    assert len({predictions.folder for predictions in kept}) == 3


# -- memory -------------------------------------------------------------------------------------------


def test_large_images_are_taken_one_by_one(network: Any, card: Card) -> None:
    taken = [Predictor(network(), card, (side, side)).images_at_once(8) for side in (512, 1024, 2048)]
    assert taken == [8, 2, 1]
    assert Predictor(network(), card, None).images_at_once(8) == 1


def test_memory_of_a_pass_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    # While ReLU runs, the image and two tensors of 8 channels are held, 4 bytes a value.
    assert pass_bytes(network, torch.Size((1, 3, 16, 16))) == (3 + 8 + 8) * 16 * 16 * 4


def test_a_pass_that_does_not_fit_names_tiles(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = Pixels(), torch.zeros(1, 3, 256, 160)
    monkeypatch.setattr(memory, "SMALL", 2**15)
    monkeypatch.setattr(tiles, "PIXELS_AT_ONCE", 2**15)
    monkeypatch.setattr(memory, "free_memory", lambda: 256 * 160 * (3 + 3) * 4 - 1)  # the image and the answer
    with pytest.raises(UserError, match=r"a pass over 1 image of 256x160 .*predict by tiles, such as --tile 512x512"):
        Predictor(network, card, (256, 160)).logits(image)
    with pytest.raises(UserError, match="take a smaller --tile"):
        Predictor(network, card, (256, 160), tiles=Tiles((256, 192), 32)).logits(image)
    Predictor(network, card, (256, 160), tiles=Tiles((64, 64), 32)).logits(image)
    monkeypatch.setattr(memory, "free_memory", lambda: 256 * 160 * (3 + 3) * 4)
    Predictor(network, card, (256, 160)).logits(image)


class Pixels(nn.Module):
    """One convolution of single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.segmentation_head = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.config = {"encoder_name": "pixels"}

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.segmentation_head(image)
        return answer
