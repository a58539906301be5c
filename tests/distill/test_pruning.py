"""Pruned runs: narrower students, repaired on the same images against the same teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from segskd.cli import main
from segskd.config import Recipe, make_recipe, merged
from segskd.data.dataset import hash_order
from segskd.distill.running.branch import branch_recipe
from segskd.distill.running.prepare import prepare
from segskd.distill.running.pruning import plan_pruned, prune_recipe, pruned_runs
from segskd.distill.running.session import halve_batch, resume, start, train_pruned
from segskd.errors import UserError
from segskd.models.build import describe, load
from segskd.models.cut import cut
from segskd.models.stages import feature_shapes
from segskd.run_admin import delete, rename
from segskd.runs import Run, default_name

pytestmark = pytest.mark.slow

RATIO = 0.5


class Killed(BaseException):
    """What ends a worker at once."""


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.path / "student" / "model.safetensors")


@pytest.fixture(scope="module")
def base(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy that tests may have runs beside."""
    folder = tmp_path_factory.mktemp("pruning") / "old"
    shutil.copytree(finished.path, folder)
    return Run.open(folder)


@pytest.fixture(scope="module")
def narrow(base: Run) -> Run:
    return train_pruned(*plan_pruned(base, RATIO))


def test_it_is_a_run_beside_the_other(base: Run, narrow: Run) -> None:
    recipe, result = narrow.recipe, json.loads((narrow.path / "result.json").read_text())
    assert narrow.path == base.path.parent / "old-pruned-50pc"
    assert recipe.prune is not None
    assert (recipe.prune.run, recipe.prune.ratio) == (str(base.path), RATIO)
    networks = (recipe.network, result["student"]["network"], describe(load(narrow.path)))
    assert networks == ("linknet:tu-test_resnet pruned by 50 %",) * 3
    assert narrow.summary()["student"] == recipe.network
    assert [phase["phase"] for phase in result["phases"]] == cut(load(base.path)).names
    assert (narrow.path / "subset.txt").read_text() == (base.path / "subset.txt").read_text()
    old = json.loads((base.path / "result.json").read_text())
    assert result["teacher_miou"] == old["teacher_miou"]
    assert result["student"]["parameters"] < 0.3 * old["student"]["parameters"]
    assert feature_shapes(cut(load(narrow.path)), (64, 96))["encoder.4"][0] == 48
    assert default_name(recipe, "bands") == "old-pruned-50pc"


def test_epochs_and_rate(base: Run) -> None:
    changed_recipe = changed(base.recipe, optimisation={"epochs": 21, "lr": 0.02})
    base_recipe = base.recipe
    try:
        base.write_recipe(changed_recipe)
        assert prune_recipe(base, 0.3).optimisation == changed_recipe.optimisation.model_copy(update={"epochs": 10})
        assert prune_recipe(base, 0.3, 7).optimisation.epochs == 7
    finally:
        base.write_recipe(base_recipe)
    assert prune_recipe(base, 0.3).optimisation.epochs == 1


def test_the_same_again_is_not_trained_again(base: Run, narrow: Run) -> None:
    before = (narrow.path / "result.json").stat().st_mtime_ns
    recipe, folder = plan_pruned(base, RATIO)
    assert folder == narrow.path
    assert train_pruned(recipe, folder).path == narrow.path
    assert (narrow.path / "result.json").stat().st_mtime_ns == before
    assert [run.name for run in pruned_runs(base)] == ["old-pruned-50pc"]
    assert plan_pruned(base, RATIO, 3)[1].name == "old-pruned-50pc-2"
    assert plan_pruned(base, 0.25)[1].name == "old-pruned-25pc"


@pytest.mark.parametrize("when", [("phase_start", "encoder.0"), ("phase_start", "decoder.1"), ("step", "encoder.2")])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    base: Run, narrow: Run, tmp_path: Path, when: tuple[str, str]
) -> None:
    """From its first checkpoint on a pruned run needs the other no more."""
    other = tmp_path / "other"
    shutil.copytree(base.path, other)

    def kill(event: dict[str, Any]) -> None:
        if (event.kind, getattr(event, "phase", None)) == when and getattr(event, "step", 2) == 2:
            raise Killed

    recipe, folder = plan_pruned(Run.open(other), RATIO)
    with pytest.raises(Killed):
        start(changed(recipe, checkpoint_seconds=0.0), folder, [kill])
    if when[1] == "decoder.1":
        shutil.rmtree(other)
    resume(Run.open(folder))
    whole, killed = weights(narrow), weights(Run.open(folder))
    assert [key for key, value in whole.items() if not torch.equal(value, killed[key])] == []


def test_a_branch_or_another_seed_is_not_taken_for_it(base: Run, narrow: Run, tmp_path: Path) -> None:
    Run.create(base.path.parent / "branch", changed(branch_recipe(narrow, "decoder.4")))
    Run.create(base.path.parent / "seeded", changed(prune_recipe(base, RATIO), seed=11))
    try:
        assert [run.name for run in pruned_runs(base)] == ["seeded", "old-pruned-50pc"]
        assert plan_pruned(base, RATIO)[1] == narrow.path
    finally:
        shutil.rmtree(base.path.parent / "branch")
        shutil.rmtree(base.path.parent / "seeded")


def test_one_whose_batch_was_halved_goes_on(base: Run) -> None:
    recipe, folder = plan_pruned(base, 0.25)
    run = Run.create(folder, recipe)
    try:
        halve_batch(run)
        assert run.recipe.optimisation != recipe.optimisation
        assert plan_pruned(base, 0.25)[1] == folder
    finally:
        shutil.rmtree(folder)


def test_another_seed_leaves_the_images_as_they_were(base: Run, tmp_path: Path) -> None:
    job = prepare(changed(prune_recipe(base, RATIO, 1), seed=11), tmp_path / "new")
    old = (base.path / "subset.txt").read_text().split()
    assert sorted(hash_order([f"b{number:02}" for number in range(12)], 11)[:6]) != old
    assert [pair.name for pair in job.subset.train] == old


def test_a_branch_of_a_pruned_run_is_as_narrow(narrow: Run, tmp_path: Path) -> None:
    start(branch_recipe(narrow, "decoder.4", 1), tmp_path / "branch")
    old, new = weights(narrow), weights(Run.open(tmp_path / "branch"))
    assert {key: value.shape for key, value in old.items()} == {key: value.shape for key, value in new.items()}
    moved = {key.rsplit(".", 3)[0] for key, value in old.items() if not torch.equal(value, new[key])}
    assert {key.partition(".")[0] for key in moved} == {"decoder", "segmentation_head"}


@pytest.mark.parametrize(
    "changes",
    [{"method": "supervised"}, {"method": "fitnets"}, {"method": "hinton", "options": {"temperature": 2.0}}],
)
def test_a_student_that_was_not_trained_stage_by_stage(base: Run, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Lacks adapters: they are learnt while it is repaired."""
    start(changed(base.recipe, **changes), tmp_path / "plain")
    recipe, folder = plan_pruned(Run.open(tmp_path / "plain"), RATIO)
    assert recipe.method == "stagewise"
    found = train_pruned(recipe, folder)
    state = found.load_state()
    assert state is not None
    assert state["adapters"]["encoder_4.project.weight"].shape == (64, 48, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "unet:resnet14"}, "student differs"),
        ({"subset": {"count": 5}}, "subset differs"),
        ({"prune": {"run": "/nowhere"}}, "no run at"),
        ({"prune": {"ratio": 1.0}}, r"prune\.ratio: must be less than 1"),
        ({"prune": {"ratio": 0.0}}, r"prune\.ratio: must be greater than 0"),
        ({"method": "supervised"}, "only method stagewise or stagewise_finetuned can train a pruned student"),
    ],
)
def test_what_can_not_be(base: Run, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(changed(prune_recipe(base, RATIO, 1), **changes), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_can_not_be_pruned(base: Run, narrow: Run, teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="old-pruned-50pc is pruned already: prune old, which it came from"):
        prune_recipe(narrow, RATIO)
    with pytest.raises(UserError, match="the teacher is not the one"):
        start(changed(prune_recipe(base, RATIO), teacher=str(teacher_folder)), tmp_path / "no")
    alone = Run.create(tmp_path / "alone", changed(base.recipe, method="supervised", teacher=None))
    with pytest.raises(UserError, match="alone is new: only a finished run's"):
        prune_recipe(alone, RATIO)
    shutil.copy(base.path / "result.json", alone.path)
    without = merged(base.recipe.model_dump(mode="json"), {"method": "supervised"}) | {"teacher": None}
    alone.write_recipe(make_recipe(without))
    with pytest.raises(UserError, match="alone has no teacher"):
        prune_recipe(alone, RATIO)


def test_a_run_without_its_state(base: Run, tmp_path: Path) -> None:
    shutil.copytree(base.path, tmp_path / "stateless")
    (tmp_path / "stateless" / "state.pt").unlink()
    with pytest.raises(UserError, match=r"stateless has no state\.pt"):
        start(prune_recipe(Run.open(tmp_path / "stateless"), RATIO), tmp_path / "no")


def test_renamed_and_deleted_the_other_is_followed_and_kept(base: Run, tmp_path: Path) -> None:
    shutil.copytree(base.path, tmp_path / "first")
    first = Run.open(tmp_path / "first")
    Run.create(tmp_path / "second", prune_recipe(first, RATIO))
    with pytest.raises(UserError, match="comes before, second"):
        delete(first)
    rename(first, "third")
    found = Run.open(tmp_path / "second").recipe.prune
    assert found is not None
    assert found.run == str(tmp_path / "third")


def test_on_the_command_line(base: Run, narrow: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["export", str(base.path), "--prune", str(RATIO), "--out", str(tmp_path), "--json"]
    assert main(ask) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(made["package"]).name == "old-pruned-50pc-safetensors.zip"
    assert made["certificate"]["network"] == "linknet:tu-test_resnet pruned by 50 %"
    assert made["certificate"]["pixels_differing"] == 0
    assert main(["export", str(base.path), "--prune-epochs", "3"]) == 2
    assert "give --prune, too" in capsys.readouterr().err
    assert main(["export", str(base.path), "--prune", "1.5"]) == 2
    assert "prune.ratio" in capsys.readouterr().err
