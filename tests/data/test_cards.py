"""Cards: what they say, and what they may not say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segskd.data.cards import CARDS_FOLDER, PROJECT_CARDS, UNKNOWN, Card, data_folder, list_cards, load_card
from segskd.errors import UserError

CONTENT: dict[str, Any] = {
    "name": "three",
    "title": "three classes",
    "folder": "three",
    "classes": [
        {"name": "ground", "color": [0, 0, 255]},
        {"name": "wall", "color": [0, 1, 0]},
        {"name": "sky", "color": [2, 0, 0]},
    ],
    "splits": {"train": {"images": "i/{name}.png", "masks": "m/{name}.png"}},
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Writes the card above after a change."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = copy.deepcopy(CONTENT)
        change(content)
        path = tmp_path / "three.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("name", PROJECT_CARDS)
def test_every_card_of_the_project_loads(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    assert card.licence
    assert card.archives or card.generator or card.fetch_help


def test_camvid_is_the_papers() -> None:
    card = load_card("camvid")
    assert {name: split.count for name, split in card.splits.items()} == {"train": 367, "val": 101, "test": 233}
    assert len(card.classes) == card.ignore_index == 11
    assert (card.mean, card.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["camvids", "", "no/such.yaml", "camvid.yml"])
def test_an_unknown_card_names_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"no card '{name}'.*\bcamvid\b"):
        load_card(name)


@pytest.mark.parametrize("content", ["name: [", "\tname: x", "a: b: c"])
def test_not_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "card.yaml").write_text(content)
    with pytest.raises(UserError, match=r"card\.yaml is not YAML"):
        load_card(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(colour="red"), "colour"),
        (lambda c: c.pop("folder"), "folder"),
        (lambda c: c.update(name="a b"), "name"),
        (lambda c: c.update(classes=c["classes"][:1]), "classes"),
        (lambda c: c["classes"][1].update(color=[0, 256, 0]), r"classes\.1\.color\.1"),
        (lambda c: c["classes"][1].update(name="sky"), "two classes have the same name"),
        (lambda c: c.update(ignore_index=2), "ignore_index 2 is the index of a class"),
        (lambda c: c.update(ignore_index=256), "ignore_index"),
        (lambda c: c.update(values={0: 0, 7: 3}), r"values map to \[3\]"),
        (lambda c: c["splits"]["train"].update(images="i/all.png"), r"splits\.train: 'i/all\.png' must contain {name}"),
        (lambda c: c["splits"]["train"].update(masks="{name}/{name}.png"), r"must contain {name} once"),
        (lambda c: c["splits"]["train"].update(masks="../m/{name}.png"), "must lie below the dataset's folder"),
        (lambda c: c["splits"]["train"].update(images="/i/{name}.png"), "must lie below the dataset's folder"),
        (lambda c: c["splits"]["train"].update(share=[0.5, 0.5]), "share"),
        (lambda c: c["splits"]["train"].update(share=[0.5, 1.1]), "share"),
        (lambda c: c["splits"].update(extra=c["splits"]["train"]), "splits"),
        (lambda c: c.update(splits={"val": c["splits"]["train"]}), "a card needs a train split"),
        (lambda c: c.update(mask_format="color", ignore_colors=[[0, 1, 0]]), "same colour"),
        (lambda c: c.update(archives=[{"url": "http://a/b.zip"}]), "needs an md5 or a sha256"),
        (lambda c: c.update(archives=[{"url": "http://a/b.zip", "md5": "ABC"}]), "md5"),
    ],
)
def test_what_a_card_may_not_say(
    written: Callable[..., Path], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(UserError, match=rf"card .*three\.yaml: .*{said}"):
        load_card(written(change))


def test_the_unchanged_card_loads(written: Callable[..., Path]) -> None:
    card = load_card(str(written(lambda content: None)))
    assert card.class_names == ["ground", "wall", "sky"]
    assert card.palette == [(0, 0, 255), (0, 1, 0), (2, 0, 0)]
    assert card.ignore_index == 255


def test_cards_that_say_the_same_are_equal_whatever_was_worked_out() -> None:
    one, same, other = (Card.model_validate({**CONTENT, "title": title}) for title in ("a", "a", "b"))
    assert one.value_table[0] == same.value_table[0] == other.value_table[0] == 0
    assert one == same
    assert one != other
    assert one != CONTENT


def test_value_table_without_values_is_the_identity() -> None:
    table = Card.model_validate({**CONTENT, "ignore_index": 9}).value_table
    assert table.shape == (65537,)
    assert {value: table[value] for value in np.flatnonzero(table != UNKNOWN)} == {0: 0, 1: 1, 2: 2, 9: 9}


def test_value_table_with_values_knows_only_these() -> None:
    table = Card.model_validate({**CONTENT, "values": {7: 0, 8: 1, 11: 1, 26: 2, 0: 255, -1: 255}}).value_table
    known = {value: table[value] for value in np.flatnonzero(table != UNKNOWN)}
    assert known == {0: 255, 7: 0, 8: 1, 11: 1, 26: 2}


def test_colour_table() -> None:
    card = Card.model_validate({**CONTENT, "mask_format": "color", "ignore_colors": [[1, 1, 1]]})
    table = card.colour_table
    assert table.shape == (256**3,)
    known = {int(packed): int(table[packed]) for packed in np.flatnonzero(table != UNKNOWN)}
    assert known == {255: 0, 256: 1, 2 * 65536: 2, 65536 + 256 + 1: 255}


def test_a_missing_split_names_those_there_are() -> None:
    with pytest.raises(UserError, match="'three' has no split 'val'; it has train"):
        Card.model_validate(CONTENT).split("val")


def test_where_datasets_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGSKD_DATA", raising=False)
    assert data_folder(None) == CARDS_FOLDER  # in a clone, beside the cards
    monkeypatch.setenv("SEGSKD_DATA", str(tmp_path / "env"))
    assert data_folder(None) == tmp_path / "env"
    assert data_folder(tmp_path / "given") == tmp_path / "given"


def test_a_card_in_the_data_folder_goes_by_its_name(
    written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(lambda content: None)
    (tmp_path / "camvid.yaml").write_text((tmp_path / "three.yaml").read_text())
    assert load_card("three", tmp_path).title == "three classes"
    assert load_card("camvid", tmp_path).name == "camvid"
    monkeypatch.delenv("SEGSKD_DATA", raising=False)
    with pytest.raises(UserError, match=r"no card 'three': name one of camvid, .*scenes, or the path"):
        load_card("three")
    monkeypatch.setenv("SEGSKD_DATA", str(tmp_path))
    assert load_card("three").name == "three"
    with pytest.raises(UserError, match=r"no card 'four': name one of camvid, .*, three, or the path"):
        load_card("four")


def test_cards_are_listed_the_projects_first_and_broken_ones_with_a_reason(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    written(lambda content: None)
    (tmp_path / "a.yaml").write_text("name: [")
    (tmp_path / "b.yaml").write_text("name: b\nclasses: []\n")
    (tmp_path / "recipe.yaml").write_text("kind: distill\ndata: {card: three}\n")
    (tmp_path / ".hidden.yaml").write_text("name: [")
    entries = list_cards(tmp_path)
    assert [entry.name for entry in entries] == [*PROJECT_CARDS, "a", "b", "three"]
    assert [entry.own for entry in entries] == [False] * len(PROJECT_CARDS) + [True] * 3
    assert [entry.card is None for entry in entries[-3:]] == [True, True, False]
    assert "is not YAML" in (entries[-3].problem or "")
    assert "card" in (entries[-2].problem or "")
    assert entries[-1].problem is None
    assert all(load_card(entry.place).name == entry.name for entry in entries if entry.card)


def test_the_projects_cards_are_listed_once_where_data_lies_beside_them() -> None:
    entries = list_cards(CARDS_FOLDER)
    assert [entry.place for entry in entries if not entry.own] == list(PROJECT_CARDS)
    assert not {Path(entry.place).stem for entry in entries if entry.own} & set(PROJECT_CARDS)
