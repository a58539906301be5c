"""Prediction and evaluation with a network whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor, evaluate, predict_files, predict_pairs, scaled_classes

SEEN = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]]
TRUTH = [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 255, 255]]
MakePair = Callable[[str, Any, Any], Pair]


@pytest.fixture
def card(make_card: Callable[..., Card]) -> Card:
    return make_card()


def save(path: Path, seen: Any, card: Card) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(card.palette, dtype=np.uint8)[np.array(seen)]).save(path)
    return path


# -- evaluation ---------------------------------------------------------------------------------------


def test_evaluation_by_hand(network: Any, card: Card, make_pair: MakePair) -> None:
    pairs = [make_pair("a", SEEN, TRUTH), make_pair("b", [[2] * 4] * 4, [[2] * 4] * 4)]
    score = evaluate(Predictor(network(), card, (4, 4)), pairs)
    # red: 7 right, 1 too many; green: 4 right, 3 missed; blue: 16 right, 2 too many, 2 on ignored pixels
    assert score.per_class == pytest.approx({"red": 7 / 8, "green": 4 / 7, "blue": 16 / 18})
    assert score.miou == pytest.approx((7 / 8 + 4 / 7 + 16 / 18) / 3)
    assert score.pixel_accuracy == pytest.approx(27 / 30)
    assert score.images == 2


def test_sizes_are_padded_and_unpadded(network: Any, card: Card, make_pair: MakePair) -> None:
    seen = np.random.default_rng(0).integers(0, 3, (45, 61))
    pairs = [make_pair(name, seen, seen) for name in "abc"]
    stub = network()
    predictor = Predictor(stub, card, (45, 61))
    batches = list(predict_pairs(predictor, pairs, batch=2))
    assert stub.seen == [(2, 3, 64, 64), (1, 3, 64, 64)]
    assert [[pair.name for pair in part] for part, _, _ in batches] == [["a", "b"], ["c"]]
    for part, logits, masks in batches:
        assert logits.shape == (len(part), 3, 45, 61)
        assert masks.shape == (len(part), 45, 61)
        assert np.array_equal(logits.argmax(1)[0].numpy(), seen)
    assert evaluate(predictor, pairs).miou == 1.0


def test_native_compares_at_the_masks_own_size(network: Any, card: Card, make_pair: MakePair) -> None:
    pairs = [make_pair("a", [[0, 0, 1, 1]] * 4, [[0, 1, 1, 1]] * 4)]
    predictor = Predictor(network(), card, (2, 2))
    # At 2x2 the mask's columns 1 and 3 are taken, both green: red 0 of 2, green 2 of 4.
    assert evaluate(predictor, pairs).miou == pytest.approx((0 + 2 / 4) / 2)
    # Logits scaled up to 4x4 say red, red, green, green: red 4 of 8, green 8 of 12.
    native = evaluate(predictor, pairs, native=True)
    assert native.miou == pytest.approx((4 / 8 + 8 / 12) / 2)
    assert native.absent == ["blue"]


def test_native_takes_masks_of_several_sizes(network: Any, card: Card, make_pair: MakePair) -> None:
    pairs = [make_pair("a", np.zeros((6, 10)).astype(int), np.zeros((6, 10))), make_pair("b", [[1]], [[0]])]
    score = evaluate(Predictor(network(), card, (4, 4)), pairs, native=True)
    # 60 pixels right, one wrong
    assert score.pixel_accuracy == pytest.approx(60 / 61)
    assert score.images == 2


def test_a_surplus_output_never_wins(network: Any, make_card: Callable[..., Card], make_pair: MakePair) -> None:
    pairs = [make_pair("a", SEEN, SEEN)]
    stub = network(surplus=True)
    assert evaluate(Predictor(stub, make_card(ignore_index=3), (4, 4)), pairs).miou == 1.0
    with pytest.raises(UserError, match="colournetwork:colours has 4 outputs, but 'colours' has 3 classes"):
        Predictor(stub, make_card(), (4, 4))


def test_progress_is_told(network: Any, card: Card, make_pair: MakePair) -> None:
    pairs = [make_pair(f"p{number}", SEEN, TRUTH) for number in range(10)]
    told: list[tuple[int, int]] = []
    evaluate(Predictor(network(), card, (4, 4)), pairs, report=lambda *done: told.append(done))
    assert told == [(8, 10), (10, 10)]


def test_a_predictor_evaluates_whatever_mode_its_network_came_in(network: Any, card: Card) -> None:
    predictor = Predictor(network().train(), card, (4, 4))
    assert not predictor.model.training
    logits = predictor.logits(torch.zeros(1, 3, 32, 32))
    assert logits.is_inference()
    assert logits.dtype == torch.float32


def test_scaled_classes_scales_logits_not_classes() -> None:
    # From 2 to 4 columns the weights of the left logit are 1, 3/4, 1/4, 0: class 1 is only ever second.
    logits = torch.tensor([[10.0, 0.0], [4.0, 4.0], [0.0, 10.0]])[None, :, None]
    assert scaled_classes(logits, (1, 4)).tolist() == [[[0, 0, 2, 2]]]
    logits = torch.tensor([[10.0, 0.0], [8.0, 8.0], [0.0, 10.0]])[None, :, None]
    assert scaled_classes(logits, (1, 4)).tolist() == [[[0, 1, 1, 2]]]


# -- files --------------------------------------------------------------------------------------------


def test_masks_are_palette_pngs_at_the_images_size(network: Any, card: Card, tmp_path: Path) -> None:
    # The network sees 4x4, the file is 8 high and 12 wide.
    seen = np.kron(np.array(SEEN), np.ones((2, 3), dtype=int))
    path = save(tmp_path / "in/street.png", seen, card)
    predictor = Predictor(network(), card, (4, 4))
    written, unreadable = predict_files(predictor, [path], tmp_path / "new/out")
    assert (written, unreadable) == ([tmp_path / "new/out/street.png"], [])
    with Image.open(written[0]) as mask:
        assert (mask.mode, mask.size) == ("P", (12, 8))
        assert np.asarray(mask).tolist() == seen.tolist()
        assert mask.getpalette()[:12] == [255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0]
    with Image.open(tmp_path / "new/out/street_overlay.png") as drawn:
        assert (drawn.mode, drawn.size) == ("RGB", (12, 8))
        # The class's colour over the same colour
        assert np.abs(np.asarray(drawn).astype(int)[0, 0] - (255, 0, 0)).max() <= 1


def test_equal_names_get_numbers(network: Any, card: Card, tmp_path: Path) -> None:
    images = [save(tmp_path / folder / "x.png", [[answer] * 4] * 4, card) for answer, folder in enumerate("abc")]
    images.append(save(tmp_path / "d/x_overlay.png", SEEN, card))
    written, _ = predict_files(Predictor(network(), card, (4, 4)), images, tmp_path / "out")
    assert [path.name for path in written] == ["x.png", "x-2.png", "x-3.png", "x_overlay-2.png"]
    assert [int(np.asarray(Image.open(path))[0, 0]) for path in written[:3]] == [0, 1, 2]
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_predicting_again_writes_the_same_files(network: Any, card: Card, tmp_path: Path) -> None:
    image = save(tmp_path / "x.png", SEEN, card)
    for _ in range(2):
        written, _ = predict_files(Predictor(network(), card, (4, 4)), [image], tmp_path / "out")
        assert written == [tmp_path / "out/x.png"]


def test_no_image_is_written_over(network: Any, card: Card, tmp_path: Path) -> None:
    images = [save(tmp_path / name, SEEN, card) for name in ("x.png", "y.png", "y_overlay.png")]
    before = [path.read_bytes() for path in images]
    written, _ = predict_files(Predictor(network(), card, (4, 4)), images, tmp_path)
    assert [path.read_bytes() for path in images] == before
    assert [path.name for path in written] == ["x-2.png", "y-2.png", "y_overlay-2.png"]


def test_unreadable_images_are_skipped_and_named(network: Any, card: Card, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = save(tmp_path / "good.png", SEEN, card)
    told: list[tuple[int, int]] = []
    written, unreadable = predict_files(
        Predictor(network(), card, (4, 4)),
        [broken, good, tmp_path / "none.png"],
        tmp_path / "out",
        report=lambda *done: told.append(done),
    )
    assert unreadable == [str(broken), str(tmp_path / "none.png")]
    assert [path.name for path in written] == ["good.png"]
    assert told == [(2, 3)]


def test_a_folder_that_cannot_be_written(network: Any, card: Card, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't write .*file"):
        predict_files(Predictor(network(), card, (4, 4)), [save(tmp_path / "x.png", SEEN, card)], tmp_path / "file/out")
