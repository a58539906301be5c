"""Recipes: YAML and object are one to one, and what is wrong is named by its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segskd.config import SCHEMA, Recipe, dump_recipe, load_recipe, make_recipe, merged, overridden, parse_size
from segskd.errors import UserError

SMALLEST: dict[str, Any] = {"data": {"card": "scenes"}, "teacher": "somewhere"}


def test_yaml_round_trip(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "data": {"card": "tarjeta más/grande.yaml", "size": "45x61", "views": 2},
        "subset": {"fraction": 0.25, "rule": "balanced"},
        "optimisation": {"lr": 0.003, "weight_decay": 1e-4},
        "store": {"kind": "disk", "budget_gib": 0.5},
        "select": "best",
        "seed": 7,
    }
    made = make_recipe(merged(SMALLEST, changes))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == made


def test_names_chosen_by_hand_round_trip(tmp_path: Path) -> None:
    names = ["0001", "aachen/ä: 1", "#b", "null"]
    made = make_recipe(merged(SMALLEST, {"subset": {"rule": "hand", "names": names}}))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == made
    assert made.subset.names == tuple(names)


def test_dump_holds_every_default(tmp_path: Path) -> None:
    content = yaml.safe_load(dump_recipe(make_recipe(SMALLEST)))
    assert set(content) == set(Recipe.model_fields)
    assert content["data"]["size"] == "192x256"
    assert content["subset"] == {"fraction": None, "count": None, "rule": "random", "names": None, "labels": None}
    assert content["optimisation"]["batch"] == 8
    assert content["select"] == "last"


@pytest.mark.parametrize(
    "field", ["optimisation.epochs", "optimisation.batch", "optimisation.patience", "subset.count", "threads", "nodes"]
)
def test_numbers_that_no_page_can_hold_are_refused(field: str) -> None:
    *part, name = field.split(".")
    changes: dict[str, Any] = {name: 10**20}
    with pytest.raises(UserError, match=rf"^recipe: {field}: must be at most 1"):
        make_recipe(merged(SMALLEST, {part[0]: changes} if part else changes))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_rate_is_finite(value: float) -> None:
    with pytest.raises(UserError, match=r"optimisation\.lr: must be "):
        make_recipe(merged(SMALLEST, {"optimisation": {"lr": value}}))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("192x256", (192, 256)),
        (" 64X96 ", (64, 96)),
        ("360×480", (360, 480)),
        ([45, 61], (45, 61)),
        ("32x32", (32, 32)),
    ],
)
def test_size_is_height_then_width(written: object, size: tuple[int, int]) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        *("192", "192x", "x256", "192*256", "-64x96", "64x96x3", "31x64", "64x31", "64x16385", 192, None, {}),
        *([64], [64, 96, 3], [64.5, 96], [None, 96], ["64", "96"], [True, 96], [float("inf"), 96]),
    ],
)
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(UserError, match=r"data\.size: "):
        make_recipe({"data": {"card": "scenes", "size": written}, "teacher": "somewhere"})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bacth": 8}, "bacth"),
        ({"optimisation": {"learning_rate": 0.1}}, r"optimisation\.learning_rate"),
        ({"optimisation": {"lr": 0}}, r"optimisation\.lr"),
        ({"optimisation": {"epochs": 0}}, r"optimisation\.epochs"),
        ({"optimisation": {"batch": "many"}}, r"optimisation\.batch"),
        ({"data": {"views": 0}}, r"data\.views"),
        ({"store": {"kind": "cloud"}}, r"store\.kind"),
        ({"store": {"bits": 4}}, r"store\.bits"),
        (
            {"store": {"kind": "recompute", "bits": 8}},
            "store: features that are recomputed .* are not stored: leave --store-bits out",
        ),
        ({"store": {"bits": 8}, "method": "supervised"}, "stores no features: leave --store-bits out"),
        ({"subset": {"rule": "first"}}, r"subset\.rule"),
        ({"subset": {"fraction": 0.1, "count": 30}}, "subset: .*fraction or a count"),
        ({"subset": {"rule": "hand"}}, r"subset: rule hand needs names \(--names\)"),
        ({"subset": {"names": ["a", "b"]}}, "subset: rule hand needs names .*, no other rule takes any"),
        ({"subset": {"rule": "diverse", "names": ["a", "b"]}}, "subset: .*no other rule takes any"),
        ({"subset": {"rule": "hand", "names": ["a", "b"], "count": 2}}, "not a fraction or a count"),
        ({"subset": {"rule": "hand", "names": ["a", "b"], "fraction": 0.5}}, "not a fraction or a count"),
        ({"subset": {"rule": "hand", "names": ["a", "b", "a"]}}, "subset: 'a' is named more than once"),
        ({"subset": {"rule": "hand", "names": ["a"]}}, "subset: 1 images are named, but training needs at least 2"),
        ({"subset": {"rule": "hand", "names": []}}, "subset: 0 images are named"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"precision": "64"}, "precision"),
        ({"kind": "teach"}, "a teacher is trained without a teacher"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        make_recipe(merged(SMALLEST, changes))
    assert "\n" not in str(caught.value)


def test_the_teacher_is_needed_where_one_teaches() -> None:
    content = {"data": {"card": "scenes"}}
    with pytest.raises(UserError, match=r"stagewise needs a teacher.*--teacher"):
        make_recipe(content)
    assert make_recipe({**content, "method": "supervised"}).teacher is None
    assert make_recipe({**content, "kind": "teach"}).teacher is None


def test_the_card_is_needed() -> None:
    with pytest.raises(UserError, match=r"data\.card"):
        make_recipe({"data": {}, "teacher": "somewhere"})


def test_further_problems_are_counted() -> None:
    with pytest.raises(UserError, match="and 2 more"):
        make_recipe(merged(SMALLEST, {"one": 1, "two": 2, "three": 3}))


@pytest.mark.parametrize(
    ("written", "said"),
    [(b"data: [", "is not YAML"), (b"\xff\xfe\x00", "is not YAML"), (b"- a\n- b\n", "recipe"), (b"", "recipe")],
)
def test_files_that_are_no_recipe(tmp_path: Path, written: bytes, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(written)
    with pytest.raises(UserError, match=said):
        load_recipe(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_merged_lays_changes_over_part_by_part() -> None:
    base = {"data": {"card": "a", "views": 2}, "seed": 1}
    assert merged(base, {"data": {"card": "b", "views": None}, "seed": None, "store": {"kind": "disk"}}) == {
        "data": {"card": "b", "views": 2},
        "seed": 1,
        "store": {"kind": "disk"},
    }
    assert base == {"data": {"card": "a", "views": 2}, "seed": 1}


def test_a_recipe_does_not_change() -> None:
    made = make_recipe(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        made.seed = 3  # type: ignore[misc]


def test_what_explodes_when_it_is_written_out_is_told_in_a_line() -> None:
    """Nine lists of nine of the same list: YAML's aliases make a few bytes into gigabytes of text."""
    value: object = ["x"] * 9
    for _ in range(9):
        value = [value] * 9
    with pytest.raises(UserError) as refused:
        make_recipe({"data": {"card": "scenes", "size": value}, "method": "supervised"})
    assert "is not a size" in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_what_is_no_mapping_is_no_recipe(content: object) -> None:
    with pytest.raises(UserError, match="it has no fields"):
        make_recipe(content)


def test_a_new_learning_rate_holds_for_all_phases_unless_theirs_is_given() -> None:
    base = merged(SMALLEST, {"optimisation": {"lr": 0.01, "joint_lr": 0.001, "batch": 4}})
    new = overridden(base, {"optimisation": {"lr": 0.003}})
    assert new["optimisation"] == {"lr": 0.003, "joint_lr": None, "batch": 4}
    both = overridden(base, {"optimisation": {"lr": 0.003, "joint_lr": 0.002}})
    assert both["optimisation"] == {"lr": 0.003, "joint_lr": 0.002, "batch": 4}
    neither = overridden(base, {"optimisation": {"batch": 2}})
    assert neither["optimisation"] == {"lr": 0.01, "joint_lr": 0.001, "batch": 2}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("seed", "the order (0)."),
        ("snapshots", "multi_teacher_gan (0)."),
        ("batch", "a step (8)."),
        ("lr", "the learning rate (0.01 for a stage by itself, 0.001 for a whole network)."),
        ("devices", "the cores (1, or as torchrun or SLURM started them)."),
        ("nodes", "machines (1, or as torchrun or SLURM started them)."),
        ("trust_teacher", "a few labelled images."),
        ("teacher", "with its network."),
    ],
)
def test_a_flags_help_ends_with_what_holds_without_it(name: str, end: str) -> None:
    assert SCHEMA[name].flag_help.endswith(end)
