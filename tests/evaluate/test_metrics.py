"""mIoU and its companions: by hand, by torchmetrics, by counting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from segskd.data.cards import Card
from segskd.errors import UserError
from segskd.evaluate.metrics import ConfusionMatrix, Score, check_outputs, class_logits

# Truth and prediction of one image; 255 is ignored.
TRUTH = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 255, 255]]])
PREDICTED = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 0]]])


@pytest.fixture
def card(make_card: Callable[..., Card]) -> Card:
    return make_card()


def test_figures_by_hand(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED, TRUTH)
    assert matrix.counts.tolist() == [[7, 0, 0], [1, 4, 2], [0, 0, 0]]
    score = matrix.score()
    # red: 7 right, 1 too many; green: 4 right, 3 missed; blue: 2 too many
    assert score.per_class == pytest.approx({"red": 7 / 8, "green": 4 / 7, "blue": 0.0})
    assert score.miou == pytest.approx((7 / 8 + 4 / 7 + 0) / 3)
    assert score.pixel_accuracy == pytest.approx(11 / 14)
    assert (score.absent, score.images) == ([], 1)


def test_an_absent_class_is_left_out_and_listed(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED.clamp(max=1), TRUTH)
    score = matrix.score()
    # green: 6 right, 1 missed
    assert score.per_class == {"red": pytest.approx(7 / 8), "green": pytest.approx(6 / 7), "blue": None}
    assert score.miou == pytest.approx((7 / 8 + 6 / 7) / 2)
    assert score.absent == ["blue"]


def test_counts_are_added_over_images_before_dividing(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED, TRUTH)
    matrix.update(torch.full((1, 4, 4), 2), torch.full((1, 4, 4), 2))
    of_sums = (7 / 8 + 4 / 7 + 16 / 18) / 3
    of_images = ((7 / 8 + 4 / 7 + 0) / 3 + 1) / 2
    assert matrix.score().miou == pytest.approx(of_sums)
    assert matrix.score().miou != pytest.approx(of_images, abs=1e-3)
    assert matrix.score().images == 2


@pytest.mark.parametrize("ignore_index", [3, 255])
def test_agrees_with_torchmetrics_and_with_counting(make_card: Callable[..., Card], ignore_index: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.choice(np.array([0, 1, 2, ignore_index]), size=(6, 20, 30), p=[0.6, 0.25, 0.05, 0.1])
    predicted = np.where(generator.random(truth.shape) < 0.7, truth % 3, generator.integers(0, 3, truth.shape))
    matrix = ConfusionMatrix(make_card(ignore_index=ignore_index))
    jaccard = MulticlassJaccardIndex(num_classes=3, average="macro", ignore_index=ignore_index)
    for start in (0, 2, 4):
        part = torch.from_numpy(predicted[start : start + 2]), torch.from_numpy(truth[start : start + 2])
        matrix.update(*part)
        jaccard.update(*part)
    score = matrix.score()
    assert score.miou == pytest.approx(jaccard.compute().item(), abs=1e-6)
    counts = truth != ignore_index
    ious = [
        (counts & (truth == c) & (predicted == c)).sum() / (counts & ((truth == c) | (predicted == c))).sum()
        for c in range(3)
    ]
    assert list(score.per_class.values()) == pytest.approx(ious)
    assert score.pixel_accuracy == pytest.approx((predicted == truth)[counts].mean())


def test_byte_masks_count_alike(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED, TRUTH.to(torch.uint8))
    assert matrix.counts.tolist() == [[7, 0, 0], [1, 4, 2], [0, 0, 0]]


def test_nothing_but_ignored_pixels(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED, torch.full_like(TRUTH, 255))
    with pytest.raises(UserError, match=r"every pixel is ignored \(value 255\)"):
        matrix.score()


def test_a_score_as_json_and_back(card: Card) -> None:
    matrix = ConfusionMatrix(card)
    matrix.update(PREDICTED.clamp(max=1), TRUTH)
    plain = matrix.score().as_dict()
    assert set(plain) == {"miou", "pixel_accuracy", "per_class", "absent_classes", "images"}
    assert Score.from_dict(plain) == matrix.score()


def test_the_surplus_output_is_no_answer(make_card: Callable[..., Card]) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 9.0])[None, :, None, None]
    assert class_logits(logits, make_card(ignore_index=3)).argmax(1).item() == 1
    assert torch.equal(class_logits(logits[:, :3], make_card()), logits[:, :3])


@pytest.mark.parametrize(
    ("outputs", "ignore_index", "fits"),
    [(3, 255, True), (3, 3, True), (4, 3, True), (4, 255, False), (4, 4, False), (2, 3, False), (5, 3, False)],
)
def test_outputs_and_classes(make_card: Callable[..., Card], outputs: int, ignore_index: int, fits: bool) -> None:
    card = make_card(ignore_index=ignore_index)
    if fits:
        check_outputs(outputs, card, "the student")
    else:
        with pytest.raises(UserError, match=f"the student has {outputs} outputs, but 'colours' has 3 classes"):
            check_outputs(outputs, card, "the student")


def two(card: Card) -> Card:
    return card.model_copy(update={"classes": card.classes[:2]})


def test_one_output_stands_for_two_classes(make_card: Callable[..., Card]) -> None:
    """Its sigmoid is the share of class 1, which wins from 0 on."""
    card = two(make_card())
    check_outputs(1, card, "the teacher")
    z = torch.tensor([-3.0, -0.5, 0.5, 40.0]).view(1, 1, 2, 2)
    logits = class_logits(z, card)
    assert logits.tolist() == [[[[0, 0], [0, 0]], [[-3.0, -0.5], [0.5, 40.0]]]]
    torch.testing.assert_close(logits.softmax(1)[:, 1:], torch.sigmoid(z))
    assert logits.argmax(1).tolist() == [[[0, 0], [1, 1]]]
    with pytest.raises(UserError, match="has 1 outputs, but 'colours' has 3 classes"):
        check_outputs(1, make_card(), "the teacher")
