"""Training again from a stage: what comes before stays as it is, bit for bit, and the old run is only read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from segskd.cli import main
from segskd.config import Recipe, make_recipe, merged
from segskd.data.dataset import hash_order
from segskd.distill.running.branch import branch_recipe
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import resume, start
from segskd.errors import UserError
from segskd.evaluate.sidebyside import SideBySide
from segskd.models.build import load
from segskd.models.cut import cut
from segskd.runs import Run

pytestmark = pytest.mark.slow

STAGE = "decoder.2"
AGAIN = ["decoder.2", "decoder.3", "decoder.4", "head"]


class Killed(BaseException):
    """What ends a worker at once."""


def files(folder: Path) -> dict[str, str]:
    """sha256 of everything in a run but its lock and what comparing keeps there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and "compare" not in path.parts
    }


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))


@pytest.fixture(scope="module")
def before(finished: Run) -> dict[str, str]:
    return files(finished.path)


@pytest.fixture(scope="module")
def branch(finished: Run, before: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("branch") / "new"
    start(branch_recipe(finished, STAGE, 2), folder)
    return Run.open(folder)


def test_earlier_stages_keep_every_bit_and_later_ones_move(finished: Run, branch: Run) -> None:
    old, new = (cut(load(run.model_folder)) for run in (finished, branch))
    for name, stage in old.stages.items():
        theirs = new.stages[name].state_dict()
        same = {key: torch.equal(value, theirs[key]) for key, value in stage.state_dict().items()}
        assert same, name
        if name in AGAIN:
            moved = {key for key, value in same.items() if not value}
            assert moved == set(same), name
        else:
            assert all(same.values()), name


def test_adapters_of_earlier_stages_are_kept(finished: Run, branch: Run) -> None:
    old, new = (run.load_state() for run in (finished, branch))
    assert old is not None
    assert new is not None
    same = {key: torch.equal(value, new["adapters"][key]) for key, value in old["adapters"].items()}
    assert {key.split(".")[0] for key, value in same.items() if not value} == {"decoder_2"}
    assert {"encoder_1", "decoder_0"} <= {key.split(".")[0] for key in same}


def test_the_old_run_is_only_read(finished: Run, before: dict[str, str], branch: Run) -> None:
    assert files(finished.path) == before


def test_it_is_a_run_like_any_other(finished: Run, branch: Run) -> None:
    recipe, result = branch.recipe, json.loads((branch.path / "result.json").read_text())
    assert recipe.begin is not None
    assert (recipe.begin.run, recipe.begin.stage) == (str(finished.path), STAGE)
    assert recipe.optimisation.epochs == 2
    assert branch.status() == "finished"
    assert [phase["phase"] for phase in result["phases"]] == AGAIN
    assert sorted(path.name for path in (branch.path / "previews").iterdir() if path.is_dir()) == sorted(AGAIN)
    assert (branch.path / "subset.txt").read_text() == (finished.path / "subset.txt").read_text()
    old = json.loads((finished.path / "result.json").read_text())
    assert result["teacher_miou"] == old["teacher_miou"]
    first = next(event for event in branch.events() if event.kind == "phase_start")
    # Six images in batches of four are two steps an epoch.
    assert (first.phase, first.number, first.phases, first.steps) == (STAGE, 1, 4, 4)


def test_side_by_side_has_the_old_stages_grafts_too(finished: Run, branch: Run) -> None:
    old, new = SideBySide(finished, device="cpu"), SideBySide(branch, device="cpu")
    old.predict()
    new.predict()
    assert new.stages == old.stages
    place = new.stages.index(STAGE)
    ours, theirs = new.graft_classes("b00"), old.graft_classes("b00")
    assert (ours[:place] == theirs[:place]).all()
    for number, stage in enumerate(AGAIN, start=place):
        with Image.open(branch.path / "previews" / stage / "b00.png") as picture:
            assert (np.asarray(picture) == ours[number]).all()
    assert (ours[place:] != theirs[place:]).any()
    result = json.loads((branch.path / "result.json").read_text())
    assert [score.miou for score in new.scores()] == [result["teacher_miou"], result["miou"]]


@pytest.mark.parametrize("when", [("phase_start", "decoder.2"), ("phase_start", "head")])
def test_killed_and_resumed_it_ends_with_the_same_bits(
    finished: Run, branch: Run, tmp_path: Path, when: tuple[str, str]
) -> None:
    folder, old = tmp_path / "killed", tmp_path / "old"
    shutil.copytree(finished.path, old)

    def kill(event: dict[str, Any]) -> None:
        if (event.kind, getattr(event, "phase", None)) == when:
            raise Killed

    with pytest.raises(Killed):
        start(changed(branch_recipe(Run.open(old), STAGE, 2), checkpoint_seconds=0.0), folder, [kill])
    if when[1] == "head":  # from the first checkpoint on all that is needed lies in the branch itself
        shutil.rmtree(old)
    assert Run.open(folder).status() != "finished"
    resume(Run.open(folder))
    whole, killed = (safetensors.torch.load_file(run / "student/model.safetensors") for run in (branch.path, folder))
    assert [key for key, value in whole.items() if not torch.equal(value, killed[key])] == []


def test_a_joint_phase_moves_the_branchs_own_stages_alone(finished: Run, tmp_path: Path) -> None:
    """Of 22 epochs in all it has a half, and two of eleven stages two elevenths of these."""
    made = changed(branch_recipe(finished, "decoder.4", 2), options={"joint": 0.5})
    joint = prepare(made, tmp_path / "planned").phases[-1]
    assert (joint.name, joint.trained, joint.features, joint.epochs) == (
        "joint",
        ("decoder.4", "head"),
        ("decoder.4",),
        2,
    )
    start(made, tmp_path / "new")
    branch = Run.open(tmp_path / "new")
    old, new = (cut(load(run.model_folder)) for run in (finished, branch))
    moved = [n for n in old.names if any(
        not torch.equal(v, new.stages[n].state_dict()[k]) for k, v in old.stages[n].state_dict().items()
    )]  # fmt: skip
    assert moved == ["decoder.4", "head"]
    side = SideBySide(branch, device="cpu")
    side.predict()
    assert side.stages == old.names
    assert (side.graft_classes("b00")[-1] == side.frame("b00").student).all()
    alone = changed(made, begin={"stage": "head"})
    start(alone, tmp_path / "alone")
    assert [phase["phase"] for phase in Run.open(tmp_path / "alone").read_json("result.json")["phases"]] == ["head"]
    assert SideBySide(Run.open(tmp_path / "alone"), device="cpu").stages == old.names
    with pytest.raises(UserError, match="no stage 'joint' to begin from"):
        prepare(changed(made, begin={"stage": "joint"}), tmp_path / "no")


def test_another_seed_leaves_the_images_as_they_were(finished: Run, tmp_path: Path) -> None:
    made = changed(branch_recipe(finished, STAGE, 1), seed=11)
    old = (finished.path / "subset.txt").read_text().split()
    assert sorted(hash_order([f"b{number:02}" for number in range(12)], 11)[:6]) != old
    job = prepare(made, tmp_path / "new")
    assert [pair.name for pair in job.subset.train] == old


def test_a_branch_of_a_branch_from_an_earlier_stage(branch: Run, tmp_path: Path) -> None:
    made = branch_recipe(branch, "decoder.1")
    assert made.optimisation.epochs == 2
    start(made, tmp_path / "second", until="decoder.1")
    old, new = (cut(load(run)) for run in (branch.model_folder, tmp_path / "second" / "student"))
    moved = [n for n in old.names if any(
        not torch.equal(v, new.stages[n].state_dict()[k]) for k, v in old.stages[n].state_dict().items()
    )]  # fmt: skip
    assert moved == ["decoder.1"]


def test_a_shorter_schedule_has_a_lower_peak(branch: Run) -> None:
    """The run had two epochs a stage at 1e-3."""
    rates = [branch_recipe(branch, STAGE, epochs).optimisation.lr for epochs in (None, 1, 2, 3)]
    assert rates == [1e-3, 5e-4, 1e-3, 1e-3]


def test_on_the_command_line(branch: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cli"
    wish = ["distill", "--begin-run", str(branch.path), "--begin-stage", "head", "--epochs", "1"]
    assert main([*wish, "--run", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == str(folder)
    assert Run.open(folder).recipe.optimisation.epochs == 1
    assert Run.open(folder).recipe.optimisation.lr == 5e-4
    assert main(["distill", "--begin-run", str(branch.path)]) == 2
    assert "give both" in capsys.readouterr().err
    assert main([*wish, "--count", "4", "--run", str(tmp_path / "no")]) == 2
    assert "subset differs" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "unet:resnet14"}, "student differs"),
        ({"subset": {"count": 5}}, "subset differs"),
        ({"select": "best"}, "select differs"),
        ({"begin": {"stage": "decoder.7"}}, "no stage 'decoder.7'"),
        ({"begin": {"run": "/nowhere"}}, "no run at"),
    ],
)
def test_what_can_not_be(finished: Run, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(changed(branch_recipe(finished, STAGE, 1), **changes), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_must_agree_with_the_old_run(finished: Run, teacher_folder: Path, card_path: Path, tmp_path: Path) -> None:
    made = branch_recipe(finished, STAGE, 1)
    with pytest.raises(UserError, match="the teacher is not the one"):
        start(changed(made, teacher=str(teacher_folder)), tmp_path / "no")
    other = tmp_path / "other.yaml"
    other.write_text(card_path.read_text().replace("sky", "heaven"))
    with pytest.raises(UserError, match=r"data\.card differs"):
        start(changed(made, data={"card": str(other)}), tmp_path / "no")
    with finished.working(), pytest.raises(UserError, match="is being trained"):
        start(made, tmp_path / "no")


def test_stages_that_the_old_run_has_not(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has not trained stage 'decoder\.9'"):
        branch_recipe(finished, "decoder.9", 1)
    shutil.copytree(finished.path, tmp_path / "paused")
    paused = Run.open(tmp_path / "paused")
    state = paused.load_state()
    assert state is not None
    paused.save_state(state | {"progress": {"phases": [{"phase": "encoder.0"}]}})
    with pytest.raises(UserError, match=r"has not trained stage 'encoder.1': name one of encoder\.0$"):
        branch_recipe(paused, "encoder.1", 1)
    with pytest.raises(UserError, match="only a run by method stagewise"):
        changed(branch_recipe(finished, STAGE, 1), method="supervised")
