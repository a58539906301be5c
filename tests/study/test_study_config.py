"""Studies: what a config may say, the grid it stands for, and what may change when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from segskd.errors import UserError
from segskd.study.grid import Cell, Study, check_same, dump_study, load_study, make_study

STUDIES = Path(__file__).resolve().parents[2] / "studies"


def test_a_grid_is_all_combinations_with_the_seeds_of_each_fraction(study: Callable[..., Study]) -> None:
    made = study(fractions=[0.5, 1.0], seeds={0.5: [0, 3], 1.0: [7]}, rules=["random", "balanced"])
    names = [cell.name for cell in made.cells()]
    assert names == [
        "stagewise-resnet10-50pc-s0",
        "supervised-resnet10-50pc-s0",
        "stagewise-resnet10-50pc-balanced-s0",
        "supervised-resnet10-50pc-balanced-s0",
        "stagewise-resnet10-50pc-s3",
        "supervised-resnet10-50pc-s3",
        "stagewise-resnet10-50pc-balanced-s3",
        "supervised-resnet10-50pc-balanced-s3",
        "stagewise-resnet10-100pc-s7",
        "supervised-resnet10-100pc-s7",
        "stagewise-resnet10-100pc-balanced-s7",
        "supervised-resnet10-100pc-balanced-s7",
    ]


def test_a_cells_name_tells_what_is_not_the_default() -> None:
    assert Cell("hinton", "unetplusplus:tu-resnet18", 0.125, "hardest", 0.05, 4).name == (
        "hinton-unetplusplus-tu-resnet18-12.5pc-hardest-labels5pc-s4"
    )


def test_first_weights_and_rates_are_axes(study: Callable[..., Study]) -> None:
    shared = {key: value for key, value in study().recipe.items() if key != "init"}
    made = study(recipe=shared, methods=["supervised"], inits=["teacher", "random"], rates=[0.003, None])
    cells = made.cells()
    assert [cell.name.removeprefix("supervised-resnet10-50pc-") for cell in cells[:4]] == [
        "from-teacher-rate0.003-s0",
        "from-teacher-s0",
        "from-random-rate0.003-s0",
        "from-random-s0",
    ]
    recipes = [made.recipe_of(cell, 7) for cell in cells[:4]]
    assert [recipe.init for recipe in recipes] == ["teacher", "teacher", "random", "random"]
    rates = [(recipe.optimisation.lr, recipe.optimisation.joint_lr) for recipe in recipes[:2]]
    assert rates == [(0.003, 0.003), (None, None)]
    with pytest.raises(UserError, match="init is set by the study's inits"):
        study(inits=["teacher"])
    with pytest.raises(UserError, match=r"optimisation\.lr is set by the study's rates"):
        study(recipe=shared | {"optimisation": {"lr": 0.1}}, rates=[0.1])


@pytest.mark.parametrize(("images", "epochs"), [(36, 83), (146, 21), (367, 8), (9000, 1)])
def test_passes_become_epochs_a_stage(study: Callable[..., Study], images: int, epochs: int) -> None:
    assert study(passes=3000).epochs_a_stage(images) == epochs
    assert study(passes=None, epochs=40).epochs_a_stage(images) == 40


def test_a_cells_recipe_holds_its_axes_and_what_all_share(study: Callable[..., Study]) -> None:
    made = study(rules=["balanced"], seeds=[5], students=["unet:resnet14"], methods=["supervised"])
    (cell,) = made.cells()
    recipe = made.recipe_of(cell, 7, threads=3)
    assert (recipe.method, recipe.student, recipe.seed, recipe.threads) == ("supervised", "unet:resnet14", 5, 3)
    assert (recipe.subset.fraction, recipe.subset.rule, recipe.optimisation.epochs) == (0.5, "balanced", 7)
    assert (recipe.data.size, recipe.init, recipe.optimisation.batch) == ((64, 96), "random", 8)
    assert recipe.optimisation.patience == 0
    shared = study(recipe=made.recipe | {"threads": 1, "optimisation": None})
    assert shared.recipe_of(cell, 7, threads=3).threads == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../away"}, "name: letters, digits"),
        ({"methods": []}, "methods: "),
        ({"methods": ["stagewise", "stagewise"]}, "methods: stagewise is given more than once"),
        ({"fractions": [0.5, 1.5]}, "fractions.1: "),
        ({"fractions": "half"}, "fractions: "),
        ({"rules": ["hand"]}, "rules.0: "),
        ({"seeds": [0, 0]}, "0 is given more than once"),
        ({"seeds": {0.25: [0], 0.5: [0]}}, "seeds names fraction 0.25, which is not among"),
        ({"seeds": {0.5: []}}, "seeds names none for fraction 0.5"),
        ({"fractions": [0.5, 1.0], "seeds": {0.5: [0]}}, "seeds names none for fraction 1"),
        ({"passes": None}, "give passes (images a stage), epochs (a stage) or tflops (a cell), exactly one"),
        ({"epochs": 3}, "give passes (images a stage), epochs (a stage) or tflops (a cell), exactly one"),
        ({"tflops": 3.0}, "give passes (images a stage), epochs (a stage) or tflops (a cell), exactly one"),
        ({"fractions": [0.5, 0.5000000001]}, "two cells would have the name stagewise-resnet10-50pc-s0"),
        ({"grid": 3}, "grid: there is no such field"),
        ({"fractions": [1.5], "grid": 3}, "grid: there is no such field (and "),
    ],
)
def test_what_no_study_can_say_is_named(
    content: Callable[..., dict[str, Any]], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=r"^mine\.yaml: ") as told:
        make_study(content(**changes), "mine.yaml")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "stagewise"}, "recipe.method is set by the study's methods"),
        ({"subset": {"fraction": 0.1}}, "recipe.subset is set by the study's fractions, rules and labels"),
        ({"optimisation": {"epochs": 3}}, "recipe.optimisation.epochs is set by the study's budget"),
        ({"select": "best"}, "recipe.select: a study's cells all train for their whole budget"),
        ({"optimisation": {"patience": 5}}, "recipe.optimisation.patience: a study's cells train for their whole"),
        ({"optimisation": [1]}, "optimisation: "),
        ({"kind": "teach"}, "recipe.kind: a study's cells are distilled"),
        ({"data": {"card": "scenes", "size": "big"}}, "recipe: data.size: 'big' is not a size"),
        ({"teacher": None}, "method stagewise needs a teacher"),
    ],
)
def test_the_shared_recipe_leaves_the_axes_alone(
    content: Callable[..., dict[str, Any]], changes: dict[str, Any], words: str
) -> None:
    made = content()
    with pytest.raises(UserError) as told:
        make_study(made | {"recipe": made["recipe"] | changes}, "study")
    assert words in str(told.value)


def test_a_study_comes_back_from_its_file(study: Callable[..., Study], tmp_path: Path) -> None:
    made = study(fractions=[0.25, 0.5], seeds={0.25: [0, 1], 0.5: [2]}, title="Bänder")
    (tmp_path / "study.yaml").write_text(dump_study(made), encoding="utf-8")
    assert load_study(tmp_path / "study.yaml") == made


def test_places_begin_at_the_configs_folder_and_runs_are_found_by_name(
    content: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card_path: Path
) -> None:
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SEGSKD_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "own.yaml").write_text(card_path.read_text())

    def loaded(teacher: str, folder: str | None, changes: dict[str, Any] | None = None) -> Study:
        recipe = {"data": {"card": "own.yaml", "folder": folder}, "teacher": teacher}
        (tmp_path / "study.yml").write_text(yaml.safe_dump(content(recipe=recipe)))
        return load_study(tmp_path / "study.yml", changes)

    beside = loaded("teacher-r18", "sets").recipe
    assert beside["teacher"] == str(tmp_path / "teacher-r18")
    assert beside["data"] == {"card": str(tmp_path / "own.yaml"), "folder": str(tmp_path / "sets")}
    (tmp_path / "runs" / "teacher-r18").mkdir(parents=True)
    named = loaded("teacher-r18", None).recipe
    assert named["teacher"] == str(tmp_path / "runs" / "teacher-r18")
    assert named["data"]["folder"] == str(tmp_path / "elsewhere")
    assert loaded("somebody/camvid", None).recipe["teacher"] == "somebody/camvid"
    over = loaded("teacher-r18", None, {"teacher": "/mine", "device": "cpu", "data": {"folder": None}}).recipe
    assert (over["teacher"], over["device"], over["data"]["folder"]) == ("/mine", "cpu", str(tmp_path / "elsewhere"))


def test_axes_may_grow_and_what_all_share_may_not_change(study: Callable[..., Study], tmp_path: Path) -> None:
    before = study()
    check_same(before, study(methods=["stagewise"], fractions=[0.5, 1.0], seeds=[0, 1, 2], title="new"), tmp_path)
    spelled = before.recipe | {"data": before.recipe["data"] | {"size": [64, 96]}, "select": "last", "precision": None}
    check_same(before, study(recipe=spelled | {"precision": "auto"}), tmp_path)
    for changes, words in (
        ({"passes": 24}, "begun with passes 12, and now it would be 24"),
        ({"passes": None, "epochs": 3}, "begun with passes 12, and now it would be unset"),
        ({"passes": None, "tflops": 3.0}, "begun with passes 12, and now it would be unset"),
        ({"recipe": before.recipe | {"init": "teacher"}}, "recipe.init random, and now it would be teacher"),
        ({"recipe": before.recipe | {"optimisation": {"lr": 0.5}}}, "recipe.optimisation.lr unset, and now .* 0.5"),
    ):
        with pytest.raises(UserError, match=words):
            check_same(before, study(**changes), tmp_path)


def test_the_projects_studies_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path))
    names = ("camvid", *(f"camvid-{what}" for what in ("choosing", "cost", "joint", "192x256", "labels")), "scenes")
    camvid, choosing, cost, joint, large, labels, scenes = (load_study(STUDIES / f"{name}.yaml") for name in names)
    assert len(camvid.cells()) == 5 * (3 + 1 + 1)
    assert {cell.rule for cell in choosing.cells()} == {"random", "balanced", "diverse", "hardest"}
    assert len(choosing.cells()) == 12
    assert scenes.recipe["teacher"] == "demo-teacher"
    assert {camvid.passes, choosing.passes} == {2000}
    assert (cost.methods, cost.tflops) == (camvid.methods, 8.2)
    assert (joint.recipe["options"], joint.passes) == ({"joint": 0.1}, 2000)
    assert [cell.labels for cell in labels.cells()] == [0.1, 0.0]
    assert (set(camvid.methods) - set(large.methods), large.recipe["data"]["size"]) == ({"hinton"}, "192x256")
    assert {path.stem for path in STUDIES.glob("*.yaml")} == set(names)


def test_a_study_that_comes_with_the_program_goes_by_its_name(
    content: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_study("scenes") == load_study(STUDIES / "scenes.yaml")
    (tmp_path / "scenes").mkdir()  # a folder is no study
    assert load_study("scenes").title == "Sample street scenes, ResNet-34 to ResNet-10"
    with pytest.raises(UserError, match=r"no study 'scene': name one of camvid.*, scenes, or the path of a study"):
        load_study("scene")
    with pytest.raises(UserError, match=r"can't read scenes\.yaml: No such file"):
        load_study("scenes.yaml")
    (tmp_path / "mine").write_text(yaml.safe_dump(content(title="my own")))
    assert load_study("mine").title == "my own"
