"""A teacher is told sound from untrained, and each way of being wrong by its name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from segskd.data.cards import IMAGENET_MEAN, IMAGENET_STD, Card, load_card
from segskd.data.dataset import Pair, list_pairs, read_mask
from segskd.data.pixels import read_image
from segskd.data.transforms import ViewMaker
from segskd.distill.running.session import start
from segskd.errors import UserError
from segskd.evaluate.diagnosis import Diagnosis, chance, diagnose
from segskd.models.importing import Adjustments
from segskd.runs import Run

pytestmark = pytest.mark.slow

SIZE = (64, 96)
Asked = Callable[[nn.Module], Diagnosis]


@pytest.fixture(scope="module")
def card(card_path: Path) -> Card:
    return load_card(card_path)


@pytest.fixture(scope="module")
def pairs(card: Card, data: Path) -> Sequence[Pair]:
    return list_pairs(card, data, "train")


@pytest.fixture(scope="module")
def sound(card: Card, pairs: Sequence[Pair]) -> nn.Module:
    """A small U-Net that has learned the three bands by their colours, in half a minute at most."""
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_depth=3, decoder_channels=(32, 16, 16), encoder_weights=None, classes=3)
    view = ViewMaker(card, SIZE)
    made = [view(read_image(p.image, card), read_mask(p.mask, card), p.name, 0) for p in pairs]
    images, masks = torch.stack([image for image, _ in made]), torch.stack([mask for _, mask in made])
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model.train()(images), masks, ignore_index=card.ignore_index)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture
def ask(card: Card, pairs: Sequence[Pair], tmp_path: Path) -> Asked:
    return lambda model: diagnose(model, card, pairs, [], SIZE, "cpu", tmp_path)


class Expecting(nn.Module):
    """Takes images normalised otherwise and hands them on as the network inside knows them."""

    def __init__(self, model: Any, mean: float, std: float) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std
        self.segmentation_head, self.config = model.segmentation_head, model.config

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        logits: Tensor = self.model((image * self.std + self.mean - mean) / std)
        return logits


def test_chance_by_hand() -> None:
    # Shares 1/4 and 3/4, a third class absent: 0.75/2; (0.25/1.75 + 0.75/1.25)/2.
    counts = torch.tensor([[5, 5, 0], [10, 10, 10], [0, 0, 0]])
    assert chance(counts) == pytest.approx((0.375, (1 / 7 + 0.6) / 2))


def test_a_sound_teacher(sound: nn.Module, ask: Asked) -> None:
    found = ask(sound)
    assert found.miou > 0.9
    assert (found.images, found.split) == (12, "training")
    assert found.skill(1.0) == 1
    assert str(found).startswith(f"teacher on 12 training images: mIoU {found.miou:.2f}, chance {found.chance:.2f}; ")


def test_with_few_labels_the_validation_split_judges(
    sound: nn.Module, card: Card, pairs: Sequence[Pair], data: Path, tmp_path: Path
) -> None:
    found = diagnose(sound, card, pairs[:7], list_pairs(card, data, "val"), SIZE, "cpu", tmp_path)
    assert (found.images, found.split) == (4, "validation")


def test_the_same_teacher_is_asked_once(sound: nn.Module, ask: Asked) -> None:
    calls: list[int] = []
    hook = sound.register_forward_hook(lambda module, inputs, output: calls.append(1))
    first, asked = ask(sound), len(calls)
    assert ask(sound) == first
    assert len(calls) == asked > 0
    hook.remove()
    other = copy.deepcopy(sound)
    Adjustments(bgr=True).apply(other)
    with pytest.raises(UserError, match="BGR"):
        ask(other)


def test_bgr(sound: nn.Module, ask: Asked) -> None:
    broken = copy.deepcopy(sound)
    Adjustments(bgr=True).apply(broken)
    with pytest.raises(UserError, match=r"fits images in BGR with the card's mean and std better.* --bgr .*--trust"):
        ask(broken)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.0, 1.0, r"RGB with values from 0 to 1 better.*mean: \[0\.0, 0\.0, 0\.0\] and std: \[1\.0, 1\.0, 1\.0\]"),
        (0.0, 1 / 255, r"RGB with values from 0 to 255 better.*std: \[0\.003922"),
    ],
)
def test_another_normalisation(sound: nn.Module, ask: Asked, mean: float, std: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(Expecting(sound, mean, std).eval())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((1, 2, 0), r"output 2 is 'ground', output 0 is 'wall', output 1 is 'sky'.*--outputs 2 0 1 "),
        ((1, 0, 2), r"output 1 is 'ground', output 0 is 'wall', counted.*--outputs 1 0 2 "),
    ],
)
def test_outputs_in_another_order(sound: nn.Module, ask: Asked, outputs: tuple[int, ...], message: str) -> None:
    broken = copy.deepcopy(sound)
    Adjustments(outputs=outputs).apply(broken)
    with pytest.raises(UserError, match=rf"has its outputs in another order: mIoU [01].*{message}"):
        ask(broken)


def test_bgr_and_another_order(sound: nn.Module, ask: Asked) -> None:
    broken = copy.deepcopy(sound)
    Adjustments(bgr=True, outputs=(1, 2, 0)).apply(broken)
    with pytest.raises(UserError, match=r"BGR .* and has its outputs in another order.*--outputs 2 0 1.*--bgr"):
        ask(broken)


def test_one_that_knows_nothing(sound: nn.Module, ask: Asked) -> None:
    broken: Any = copy.deepcopy(sound)
    nn.init.zeros_(broken.segmentation_head[0].weight)  # always the same class
    with pytest.raises(UserError, match=r"hardly better than guessing on 12 training images: its mIoU is 0\.\d+;"):
        ask(broken)


def test_a_run_begins_with_it(
    sound: Any, recipe: Callable[..., Any], tmp_path: Path, teacher_folder: Path, card: Card
) -> None:
    sound.save_pretrained(tmp_path / "sound")
    made = recipe(teacher=str(tmp_path / "sound"), trust_teacher=False, method="supervised", optimisation={"epochs": 1})
    start(made, tmp_path / "run")
    told = [event for event in Run.open(tmp_path / "run").events() if event.kind == "diagnosis"]
    assert len(told) == 1
    assert told[0].miou > 0.9 > told[0].frequency > 0
    with pytest.raises(UserError, match=r"the teacher .* --trust-teacher skips this check"):
        start(recipe(trust_teacher=False), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
