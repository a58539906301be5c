"""`data list`, `data check`, `data fetch`."""

from __future__ import annotations

import tyro
from rich.table import Table
from tyro.conf import Positional

from segskd.cli.flags import Json
from segskd.cli.output import bar, show, stage_bars
from segskd.errors import UserError

data_app = tyro.extras.SubcommandApp()


@data_app.command(name="list")
def data_list(data: str | None = None, json: Json = False) -> None:
    """The cards, and which of their data are on this disk."""
    from segskd.data.cards import card_paths, data_folder, load_card
    from segskd.data.dataset import has_split

    folder = data_folder(data)
    table = Table("card", "classes", "here", "what it is")
    rows = []
    for path in card_paths():
        card = load_card(path)
        here = [split for split in card.splits if has_split(card, folder, split)]
        rows.append({"card": card.name, "classes": card.class_names, "splits_here": here, "title": card.title})
        shown = ", ".join(here) or ("built in" if card.generator else "–")
        table.add_row(card.name, str(len(card.classes)), shown, card.title)
    show(table, {"folder": str(folder), "cards": rows}, json)


@data_app.command(name="check")
def data_check(card: Positional[str], data: str | None = None, json: Json = False) -> None:
    """Reads every image and mask of a card; exit status 2 when something is wrong."""
    from segskd.console import check_table
    from segskd.data.cards import data_folder, load_card
    from segskd.data.check import check

    with bar(f"checking {card}") as report:
        found = check(load_card(card), data_folder(data), report)
    show(check_table(found.as_dict()), found.as_dict(), json)
    if found.problems:
        raise UserError(f"{card}: {len(found.problems)} problems, the first: {found.problems[0].text}")


@data_app.command(name="fetch")
def data_fetch(card: Positional[str], data: str | None = None, json: Json = False) -> None:
    """Downloads a card's data with checksum; running it again resumes."""
    from segskd.data.cards import data_folder, load_card
    from segskd.data.fetch import fetch

    with stage_bars() as report:
        folder = fetch(load_card(card), data_folder(data), report)
    show(f"{card} lies in {folder}", {"card": card, "folder": str(folder)}, json)
