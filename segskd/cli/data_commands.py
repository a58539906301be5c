"""`data list`, `data check`, `data fetch`, `data add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from tyro.conf import Positional

from segskd.bars import ERR, bar, stage_bars
from segskd.cli.flags import JsonFlag
from segskd.cli.output import show
from segskd.errors import UserError, plural

data_app = tyro.extras.SubcommandApp()


@data_app.command(name="list")
def data_list(data: str | None = None, json: JsonFlag = False) -> None:
    """List the cards, and which of their data are on this disk."""
    from segskd.data.cards import data_folder, list_cards
    from segskd.data.dataset import has_split

    folder = data_folder(data)
    table = Table("card", "classes", "here", "what it is")
    rows: list[dict[str, Any]] = []
    for entry in list_cards(folder):
        card = entry.card
        if card is None:
            rows.append({"card": entry.name, "own": entry.own, "problem": entry.problem, "splits_here": []})
            table.add_row(entry.name, "–", "–", f"can't be read: {entry.problem}")
            continue
        here = [split for split in card.splits if has_split(card, folder, split)]
        details = {"classes": card.class_names, "splits_here": here, "title": card.title, "own": entry.own}
        rows.append({"card": card.name, **details})
        shown = ", ".join(here) or ("built in" if card.generator else "–")
        table.add_row(card.name, str(len(card.classes)), shown, card.title)
    show(table, {"folder": str(folder), "cards": rows}, json)


@data_app.command(name="check")
def data_check(card: Positional[str], data: str | None = None, json: JsonFlag = False) -> None:
    """Read every image and mask of a card; exit status 2 if something is wrong."""
    from segskd.console import check_table
    from segskd.data.cards import data_folder, load_card
    from segskd.data.check import check

    folder = data_folder(data)
    with bar(f"checking {card}") as report:
        found = check(load_card(card, folder), folder, report)
    show(check_table(found.as_dict()), found.as_dict(), json)
    if found.problems:
        raise UserError(f"{card}: {plural(len(found.problems), 'problem')}, the first: {found.problems[0].text}")


@data_app.command(name="fetch")
def data_fetch(card: Positional[str], data: str | None = None, json: JsonFlag = False) -> None:
    """Download a card's data and check its checksum; the same command resumes a download."""
    from segskd.data.cards import data_folder, load_card
    from segskd.data.fetch import fetch

    data_root = data_folder(data)
    with stage_bars() as report:
        folder = fetch(load_card(card, data_root), data_root, report)
    show(f"{card} lies in {folder}", {"card": card, "folder": str(folder)}, json)


@data_app.command(name="add")
def data_add(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|ZIP")],
    name: str | None = None,
    classes: str | None = None,
    data: str | None = None,
    json: JsonFlag = False,
) -> None:
    """Make a card for a dataset of your own.

    Takes a folder or a zip with images and masks. The layouts of PASCAL VOC, CVAT («Segmentation mask 1.1») and
    Cityscapes are recognised, too. Files that can't be used are listed and left out.

    Args:
        source: A folder, which stays where it is, or a zip, which is unpacked.
        name: The card's name (the folder's or the zip's).
        classes: The classes' names in order, with commas between.
        data: Where datasets lie (SEGSKD_DATA, else datasets/).
    """
    from segskd.api import add_dataset
    from segskd.console import check_table

    names = [part.strip() for part in classes.split(",")] if classes is not None else None
    added = add_dataset(source, name, names, data=data, progress=True)
    found = added.report.as_dict()
    show(check_table(found), {**found, "place": str(added.place), "layout": added.layout}, json)
    ERR.print(f"{added.card.name} ({added.layout}) is described in {added.place}", highlight=False, soft_wrap=True)
