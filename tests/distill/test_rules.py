"""Subset rules in whole runs: what the teacher chooses, names by hand, and what a run without a teacher is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segmentation_models_pytorch as smp
import torch

from segskd.cli import main
from segskd.config import dump_recipe
from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs
from segskd.data.pixels import read_image
from segskd.distill.running import session
from segskd.distill.running.prepare import prepare
from segskd.errors import UserError
from segskd.models.build import create, save

pytestmark = pytest.mark.slow

NAMES = [f"b{number:02}" for number in range(12)]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def answers(data: Path, card_path: Path, teacher_folder: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Features (12, 96) and mean entropies (12,) of the training images, by the library itself."""
    card = load_card(card_path)
    pixels = np.stack([read_image(pair.image, card) for pair in list_pairs(card, data, "train")]) / 255
    images = torch.from_numpy((pixels - card.mean) / card.std).permute(0, 3, 1, 2).float()
    model = smp.from_pretrained(teacher_folder).eval()
    with torch.no_grad():
        features, logits = model.encoder(images)[-1].mean((2, 3)), model(images)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy().mean((1, 2))
    return features.double().numpy(), entropy.numpy()


def k_centre(features: npt.NDArray[Any], size: int) -> list[str]:
    """By the textbook, with every distance worked out in each step."""
    taken = [int(np.linalg.norm(features - features.mean(0), axis=1).argmin())]
    while len(taken) < size:
        far = {
            i: min(np.linalg.norm(features[i] - features[j]) for j in taken)
            for i in range(len(features))
            if i not in taken
        }
        taken.append(max(far, key=lambda i: far[i]))
    return sorted(NAMES[i] for i in taken)


def names_of(job: Any) -> list[str]:
    return [pair.name for pair in job.subset.train]


def test_what_the_teacher_chooses(recipe: Callable[..., Any], tmp_path: Path, answers: Any, runs: Path) -> None:
    features, entropy = answers
    told: list[tuple[str, int, int | None]] = []
    diverse = prepare(
        recipe(subset={"count": 4, "rule": "diverse"}), tmp_path / "a", report=lambda *said: told.append(said)
    )
    assert names_of(diverse) == k_centre(features, 4)
    assert told == [("asking the teacher about the images", done, 12) for done in (8, 12)]
    assert len(list((runs / ".cache").glob("image_statistics-*.npz"))) == 1
    # the same pass serves the other rule, another seed, and a supervised run that names a teacher
    hardest = prepare(
        recipe(subset={"fraction": 0.25, "rule": "hardest"}, seed=1, method="supervised"),
        tmp_path / "b",
        report=lambda *said: told.append(said),
    )
    assert names_of(hardest) == sorted(NAMES[i] for i in np.argsort(-entropy)[:3])
    assert len(told) == 2


def test_balanced_keeps_its_census(recipe: Callable[..., Any], tmp_path: Path, runs: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    for _ in range(2):
        job = prepare(
            recipe(subset={"count": 4, "rule": "balanced"}), tmp_path / "a", report=lambda *said: told.append(said)
        )
        assert len(names_of(job)) == 4
    assert told == [("counting the classes' pixels", done, 12) for done in range(1, 13)]
    assert len(list((runs / ".cache").glob("pixel_counts-*.npz"))) == 1


@pytest.mark.parametrize("rule", ["diverse", "hardest"])
@pytest.mark.parametrize("changes", [{"method": "supervised"}, {"kind": "teach", "method": "supervised"}])
def test_a_run_without_a_teacher_says_so(
    recipe: Callable[..., Any], tmp_path: Path, rule: str, changes: dict[str, str]
) -> None:
    made = recipe().model_copy(update={"teacher": None, **changes})
    made = made.model_copy(update={"subset": made.subset.model_copy(update={"rule": rule, "count": 4})})
    with pytest.raises(UserError, match=rf"rule {rule} needs a teacher.*this run has none"):
        prepare(made, tmp_path / "run")


def test_names_that_no_image_has(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no training image is named 'v1'.*such as 'b00'"):
        prepare(recipe(subset={"rule": "hand", "names": ["b03", "v1"]}), tmp_path / "run")


def test_names_are_held_out_like_any(recipe: Callable[..., Any], tmp_path: Path) -> None:
    chosen = ["b09", "b01", "b07", "b04", "b02"]
    job = prepare(recipe(subset={"rule": "hand", "names": chosen}, select="best"), tmp_path / "run")
    held = [pair.name for pair in job.subset.holdout]
    assert (len(held), sorted(held + names_of(job))) == (1, sorted(chosen))


def test_a_run_from_the_command_line(
    recipe: Callable[..., Any], tmp_path: Path, answers: Any, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(subset={"fraction": 0.5})))
    flags = ["--rule", "diverse", "--count", "3", "--run", "small", "--until", "encoder.0"]
    assert main(["distill", "--recipe", str(tmp_path / "recipe.yaml"), *flags]) == 0
    assert (runs / "small" / "subset.txt").read_text().split() == k_centre(answers[0], 3)
    # names that are written down stand: going on asks nobody
    shutil.rmtree(runs / ".cache")
    assert main(["resume", "small", "--until", "encoder.1"]) == 0
    assert not (runs / ".cache").exists()
    capsys.readouterr()
    assert main(["distill", "--recipe", str(runs / "small" / "recipe.yaml"), "--names", "none.txt"]) == 2
    assert "can't read --names none.txt" in capsys.readouterr().err


def test_flags_take_the_place_of_a_recipe_s_subset(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, Any]] = []

    def start(made: Any, folder: Path, *_: object) -> dict[str, Any]:
        started.append({"run": str(folder), "after": made.model_dump(mode="json")["subset"]})
        return started[-1]

    monkeypatch.setattr(session, "start", start)
    names = tmp_path / "names.txt"
    names.write_text("b05\nb03\n")

    def distill(source: dict[str, Any], *flags: str) -> Any:
        """The subset of the recipe that is made, or what was wrong."""
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(subset=source)))
        status = main(["distill", "--recipe", str(tmp_path / "recipe.yaml"), "--json", *flags])
        err = capsys.readouterr().err
        return started[-1] if status == 0 else err

    hand = {"fraction": None, "count": None, "rule": "hand", "names": ["b05", "b03"], "labels": None}
    for source in ({"fraction": 0.5}, {"count": 4, "rule": "balanced"}, {"rule": "hand", "names": ["b01", "b02"]}):
        made = distill(source, "--names", str(names))
        assert made["after"] == hand
        assert made["run"].endswith("bands-tu-test_resnet-stagewise-2-hand-s0")
    made = distill(hand, "--rule", "hardest", "--count", "4")["after"]
    assert (made["rule"], made["count"], made["names"]) == ("hardest", 4, None)
    assert "not a fraction or a count" in distill(hand, "--count", "4")
    assert "no other rule takes any" in distill(hand, "--names", str(names), "--rule", "random")
    assert "rule hand needs names (--names)" in distill({"fraction": 0.5}, "--rule", "hand")
    names.write_text("b05\n")
    assert "1 images are named" in distill(hand, "--names", str(names))


def test_a_teacher_that_does_not_take_the_size_is_told_before_it_is_asked(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save(create("pan", "resnet18", 3), tmp_path / "pan")
    asking = recipe(teacher=str(tmp_path / "pan"), subset={"rule": "hardest", "count": 4})
    with pytest.raises(UserError, match=r"teacher .*pan doesn't take images of 64x96 \(.*\): take --size \d+x\d+"):
        prepare(asking, tmp_path / "run")
