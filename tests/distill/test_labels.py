"""Images without labels: features learn from all images, the head from those that have labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from segskd.cli.flags import DistillFlags, recipe_changes
from segskd.config import make_recipe, merged
from segskd.data.samples import Samples
from segskd.data.subset import read_names
from segskd.data.transforms import ViewMaker
from segskd.data.unlabelled import Example, list_unlabelled
from segskd.distill.running import trial
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import resume, start
from segskd.errors import UserError
from segskd.runs import Run
from segskd.subset_file import read_subset_names, subset_text

pytestmark = pytest.mark.slow

NAMES = [f"b{i:02}" for i in range(12)]


@pytest.fixture
def pictures(data: Path, tmp_path: Path) -> Path:
    """A folder with two of the dataset's pictures, one of them below another folder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    shutil.copy(data / "bands" / "train" / "images" / "b00.png", folder / "one.png")
    shutil.copy(data / "bands" / "train" / "images" / "b01.png", folder / "more" / "two.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_labelled_images_are_those_of_the_smaller_subset(recipe: Callable[..., Any], tmp_path: Path) -> None:
    half = prepare(recipe(subset={"fraction": 0.5}), tmp_path / "run")
    job = prepare(recipe(subset={"labels": 0.5}), tmp_path / "run")
    assert sorted(image.name for image in job.subset.train) == NAMES
    labelled = [job.subset.train[place].name for place in job.subset.labelled]
    assert labelled == [image.name for image in half.subset.train]
    assert len(labelled) == 6


def test_features_see_all_images_and_the_head_the_labelled_ones(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(subset={"labels": 0.25}), tmp_path / "run")
    first, head = job.phases[0], job.phases[-1]
    assert job.images_of(first) == list(range(12))
    assert job.images_of(head) == job.subset.labelled
    assert (first.epochs, head.epochs) == (2, 8)  # 12 images twice, 3 images eight times


def test_a_resumed_run_has_its_images_in_the_same_order(
    recipe: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    """The order of training depends on it, and with that every bit of the weights."""
    made = recipe(data={"unlabelled": str(pictures)}, subset={"labels": 0.25})
    drawn = prepare(made, tmp_path / "run").subset
    run = Run.create(tmp_path / "run", made)
    run.write("subset.txt", subset_text(drawn.train, drawn.holdout, drawn.unlabelled).encode())
    assert prepare(made, tmp_path / "run", read_subset_names(run)).subset == drawn


def test_the_trial_has_labels_for_the_head(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_affordable", lambda _: 2)  # a slow machine
    job = prepare(recipe(subset={"labels": 0.17}, optimisation={"epochs": 1}), tmp_path / "run")
    assert len(job.subset.labelled) == 2
    assert trial.run_trial(job, tmp_path / "scratch").phases["head"] > 0


def test_a_list_with_images_without_labels_is_no_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "subset.txt").write_text("a\nb\n# without labels\nc\n")
    with pytest.raises(UserError, match="names images that a run used without labels: leave out the lines below"):
        read_names(tmp_path / "subset.txt")


def test_a_teacher_learns_from_labels_alone(recipe: Callable[..., Any], tmp_path: Path) -> None:
    teaching = recipe().model_dump(mode="json") | {"kind": "teach", "teacher": None}
    with pytest.raises(UserError, match="a teacher learns from labels alone: leave --unlabelled out"):
        make_recipe(merged(teaching, {"data": {"unlabelled": str(tmp_path)}}))
    job = prepare(make_recipe(merged(teaching, {"subset": {"labels": 0.25}})), tmp_path / "run")
    assert [phase.epochs for phase in job.phases] == [2]


def test_masks_without_a_label_are_not_read(recipe: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    made = recipe(
        data={"folder": str(copied), "card": str(copied / "bands.yaml")},
        subset={"labels": 0.25},
        optimisation={"epochs": 1},
    )
    job = prepare(made, tmp_path / "run")
    for name in job.subset.unlabelled:
        (copied / "bands" / "train" / "masks" / f"{name}.png").write_bytes(b"no mask at all")
    result = start(made, tmp_path / "run")
    assert (result["images"], result["labelled"]) == (12, 3)
    chosen = read_subset_names(Run.open(tmp_path / "run"))
    assert chosen is not None
    assert set(chosen.unlabelled) == job.subset.unlabelled
    assert sorted(chosen.train) == NAMES


def test_the_mask_of_an_unlabelled_image_counts_nowhere(data: Path, card_path: Path) -> None:
    from segskd.data.cards import load_card

    card = load_card(str(card_path))
    picture = data / "bands" / "train" / "images" / "b00.png"
    samples = Samples([Example("x", picture, None)], 2, ViewMaker(card, (64, 96)), card)
    _, masks = samples.load([0, 1])
    assert torch.equal(masks, torch.full((2, 64, 96), card.ignore_index, dtype=torch.uint8))


def test_without_labels_the_head_learns_from_the_teacher(recipe: Callable[..., Any], tmp_path: Path) -> None:
    result = start(recipe(subset={"labels": 0.0, "count": 4}, optimisation={"epochs": 1}), tmp_path / "run")
    assert (result["images"], result["labelled"]) == (4, 0)
    job = prepare(recipe(subset={"labels": 0.0, "count": 4}), tmp_path / "other")
    assert job.phases[-1].labels == 0
    assert all(("data", "mask") not in keys for keys in job.plan.contents.train)


def test_a_mixed_phase_learns_from_labels_where_there_are_any(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe(method="simultaneous", subset={"labels": 0.25}, optimisation={"epochs": 1})
    assert start(made, tmp_path / "run")["image_passes"] == 11 * 12


def test_a_folder_of_pictures_joins_in(recipe: Callable[..., Any], pictures: Path, tmp_path: Path) -> None:
    made = recipe(data={"unlabelled": str(pictures)}, subset={"count": 3}, optimisation={"epochs": 1})
    start(made, tmp_path / "run", until="encoder.1")
    run = Run.open(tmp_path / "run")
    chosen = read_subset_names(run)
    assert chosen is not None
    assert chosen.unlabelled == ["unlabelled/more/two.png", "unlabelled/one.png"]
    assert len(chosen.train) == 5
    result = resume(run)
    assert (result["images"], result["labelled"]) == (5, 3)
    (pictures / "one.png").unlink()
    with pytest.raises(UserError, match=r"training image 'unlabelled/one\.png' of the run's subset is gone"):
        prepare(run.recipe, tmp_path / "run", chosen)


def test_a_datasets_own_files_are_no_further_images(recipe: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    """Its masks would be taken for photographs, its validation images be trained on."""
    with pytest.raises(UserError, match=r"files of a dataset \(32, such as b00\.png\), which are masks or have masks"):
        prepare(recipe(data={"unlabelled": str(data / "bands")}), tmp_path / "run")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "one.png").symlink_to(data / "bands" / "val" / "images" / "b00.png")
    with pytest.raises(UserError, match=r"\(1, such as one\.png\)"):
        prepare(recipe(data={"unlabelled": str(tmp_path / "linked")}), tmp_path / "run")
    more = tmp_path / "data"
    shutil.copytree(data / "bands", more / "bands")
    for name in ("bands", "stripes"):  # another dataset: its photographs may join in, its masks may not
        card = yaml.safe_load((data / "bands.yaml").read_text()) | {"name": name, "folder": name}
        (more / f"{name}.yaml").write_text(yaml.safe_dump(card))
    shutil.copytree(data / "bands", more / "stripes")
    (more / "bands" / "train" / "masks" / "b00.png").unlink()
    places = {"card": str(more / "bands.yaml"), "folder": str(more)}
    with pytest.raises(UserError, match=r"\(16, such as b00\.png\)"):
        prepare(recipe(data={**places, "unlabelled": str(more / "stripes")}), tmp_path / "run")
    photographs = str(more / "stripes" / "train" / "images")
    assert len(prepare(recipe(data={**places, "unlabelled": photographs}), tmp_path / "run").subset.train) == 11 + 12
    (tmp_path / "linked" / "one.png").unlink()
    (tmp_path / "linked" / "one.png").symlink_to(more / "bands" / "train" / "images" / "b00.png")
    made = recipe(data={**places, "unlabelled": str(tmp_path / "linked")})
    assert len(prepare(made, tmp_path / "run").subset.train) == 11 + 1


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        list_unlabelled(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no images"):
        list_unlabelled(tmp_path)
    cv2.imwrite(str(tmp_path / ".hidden.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="holds no images"):
        list_unlabelled(tmp_path)


def test_images_for_choosing_are_held_out_of_the_labelled_ones(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(subset={"labels": 0.5}, select="best"), tmp_path / "run")
    half = prepare(recipe(subset={"fraction": 0.5}), tmp_path / "run")
    assert len(job.subset.train) == 11
    assert {pair.name for pair in job.subset.holdout} < {image.name for image in half.subset.train}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": {"labels": 0.0}, "select": "best"}, "--labels 0 leaves none"),
        ({"subset": {"labels": 0.5, "fraction": 0.25}}, r"--labels 0\.5 of 12 images are 6, and only 3 are trained on"),
        ({"subset": {"labels": 0.5, "rule": "balanced"}}, "rule balanced counts the pixels of every mask"),
        ({"subset": {"labels": 0.1}}, r"--labels 0\.1 of 12 images leaves 1"),
        ({"subset": {"labels": 0.0}, "method": "supervised"}, "only labels to learn from"),
    ],
)
def test_what_can_not_be_is_told(
    recipe: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(recipe(**changes), tmp_path / "run")


def test_images_is_another_word_for_fraction(tmp_path: Path) -> None:
    changes = recipe_changes(DistillFlags(images=0.5, labels=0.1, unlabelled=tmp_path))
    assert changes["subset"]["fraction"] == 0.5
    assert changes["subset"]["labels"] == 0.1
    assert changes["data"]["unlabelled"] == str(tmp_path)
    with pytest.raises(UserError, match="--fraction and --images are the same"):
        recipe_changes(DistillFlags(images=0.5, fraction=0.1))
