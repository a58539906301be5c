"""The Data tab's datasets: what is listed, read, kept, refused and added."""

from __future__ import annotations

import base64
import io
import os
import shutil
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segskd.callbacks import OnActivity
from segskd.data.check import CheckReport
from segskd.errors import UserError
from ui.state.background import Tasks
from ui.state.dataset_report import plain_report, shares
from ui.state.datasets import Datasets
from ui.state.thumbnails import WIDTH, Thumbnails, thumbnail

SECONDS = 300.0


@pytest.fixture
def own_data(data: Path, card_path: Path, tmp_path: Path) -> Path:
    """A data folder of one's own, with the card of the bands in it."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.fixture
def datasets(own_data: Path, tmp_path: Path) -> Datasets:
    return Datasets(own_data, tmp_path / "cache", Tasks())


@pytest.fixture
def place(own_data: Path) -> str:
    return str(own_data / "bands.yaml")


# -- work in the background ---------------------------------------------------------------------------


def test_a_task_that_works_is_joined_and_a_stopped_one_is_begun_anew() -> None:
    tasks, go_on = Tasks(), threading.Event()

    def work(report: OnActivity) -> str:
        report("counting", 1, 3)
        go_on.wait(SECONDS)
        report("counting", 2, 3)
        return "counted"

    first = tasks.start("count", work)
    assert tasks.start("count", work) is first
    first.stop()
    go_on.set()
    assert first.wait(SECONDS)
    assert (first.state, first.done, first.result) == ("stopped", 1, None)
    second = tasks.start("count", work)
    assert second is not first
    assert second.wait(SECONDS)
    assert (second.state, second.result) == ("done", "counted")


def test_what_goes_wrong_in_a_task_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def mendable(report: OnActivity) -> None:
        raise UserError("the disk is full")

    def bug(report: OnActivity) -> None:
        raise ZeroDivisionError("by nought")

    tasks = Tasks()
    for work, problem in ((mendable, "the disk is full"), (bug, "an error in SegSKD: ZeroDivisionError: by nought")):
        task = tasks.start(work.__name__, work)
        assert task.wait(SECONDS)
        assert (task.state, task.problem) == ("failed", problem)
    assert "ZeroDivisionError" in caplog.text


# -- what there is ------------------------------------------------------------------------------------


def test_tiles_say_what_is_here_and_how_the_rest_gets_here(datasets: Datasets, place: str) -> None:
    tiles = {tile["name"]: tile for tile in datasets.tiles()}
    assert (tiles["bands"]["state"], tiles["bands"]["own"], tiles["bands"]["place"]) == ("ready", True, place)
    assert tiles["scenes"]["state"] == "draw"
    assert tiles["camvid"]["state"] == "download"
    assert "github.com" in tiles["camvid"]["how"]
    assert tiles["cityscapes"]["state"] == "hand"
    assert "register" in tiles["cityscapes"]["how"]
    assert [tile["name"] for tile in datasets.tiles()][:2] == ["scenes", "bands"]


def test_a_broken_card_is_listed_with_what_is_wrong(datasets: Datasets, own_data: Path) -> None:
    (own_data / "broken.yaml").write_text("name: broken\nclasses: []\nsplits: {}\n")
    tile = next(tile for tile in datasets.tiles() if tile["name"] == "broken")
    assert tile["state"] == "broken"
    assert "title" in tile["how"]
    with pytest.raises(UserError, match="title"):
        datasets.card(tile["place"])


@pytest.mark.parametrize("place", ["/etc/passwd", "../bands", "nothing", None, 7])
def test_only_listed_places_are_opened(datasets: Datasets, place: object) -> None:
    with pytest.raises(UserError, match="has no dataset"):
        datasets.open(place)


def test_a_dataset_that_is_not_here_has_no_names_and_says_how_it_comes(datasets: Datasets) -> None:
    view = datasets.overview("camvid")
    assert (view["names"], view["state"], view["problem"]) == ([], "download", None)


# -- what one holds -----------------------------------------------------------------------------------


def test_the_overview_has_the_shares_of_the_pixels_of_each_class(
    datasets: Datasets, own_data: Path, place: str
) -> None:
    datasets.read(datasets.open(place)).wait(SECONDS)
    view = datasets.overview(place)
    counts = np.zeros(256, dtype=np.int64)
    for path in (own_data / "bands" / "train" / "masks").iterdir():
        counts += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    expected = counts[:3] / counts[:3].sum()
    assert view["found"]["shares"]["train"] == pytest.approx(expected.tolist())
    assert view["images"] == {"train": 12, "val": 4}
    assert [list(size) for size in view["found"]["sizes"]] == [["64x96", 16]]
    assert view["classes"][2] == {"name": "sky", "color": [70, 130, 180]}
    assert view["names"] == [f"b{number:02}" for number in range(12)]


def test_what_was_read_is_kept_until_a_file_changes(
    datasets: Datasets, own_data: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    check = datasets._check

    def counting(*arguments: object) -> object:
        calls.append("check")
        return check(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Datasets, "_check", lambda self, *arguments: counting(*arguments))
    first = datasets.open(place)
    assert datasets.read(first).wait(SECONDS)
    again = Datasets(datasets.data, datasets.cache, Tasks())  # another server
    assert again.read(again.open(place)).wait(SECONDS)
    assert calls == ["check"]
    mask = own_data / "bands" / "train" / "masks" / "b00.png"
    before = mask.stat()
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    assert again.open(place, reread=True).version != first.version
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again.open(place, reread=True).version == first.version

    (own_data / "bands" / "train" / "masks" / "b03.png").unlink()
    changed = again.open(place, reread=True)
    assert changed.version != first.version
    assert again.read(changed).wait(SECONDS)
    assert calls == ["check", "check"]
    reading = again.reading(changed)
    assert reading is not None
    assert reading.report["problems"]["shown"][0]["text"] == "image train/images/b03.png has no mask"


def test_masks_that_cannot_be_counted_leave_the_rest_standing(datasets: Datasets, own_data: Path, place: str) -> None:
    cv2.imwrite(str(own_data / "bands" / "train" / "masks" / "b01.png"), np.full((64, 96), 77, np.uint8))
    opened = datasets.open(place)
    assert datasets.read(opened).wait(SECONDS)
    reading = datasets.reading(opened)
    assert reading is not None
    assert reading.pixel_counts is None
    assert reading.problem is not None
    assert "train/masks/b01.png" in reading.problem
    assert str(own_data) not in reading.problem
    assert reading.report["problems"]["kinds"] == {"unknown values": 1}


def test_of_many_problems_the_first_twenty_are_shown_and_all_are_counted(
    datasets: Datasets, place: str, tmp_path: Path
) -> None:
    found = CheckReport(datasets.card(place), images={"train": 30})
    for number in range(25):
        found.add("unpaired", tmp_path / f"{number:02}.png", f"image {tmp_path}/{number:02}.png has no mask")
    problems = plain_report(found, tmp_path)["problems"]
    assert (problems["count"], problems["kinds"], len(problems["shown"])) == (25, {"unpaired": 25}, 20)
    assert problems["shown"][19] == {"kind": "unpaired", "file": "19.png", "text": "image 19.png has no mask"}


def test_shares_of_nothing_are_nothing() -> None:
    assert shares([1, 3, 0]) == [0.25, 0.75, 0.0]
    assert shares([0, 0]) == [0.0, 0.0]


# -- pictures -----------------------------------------------------------------------------------------


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))))


def test_a_thumbnail_is_small_and_shows_the_mask_in_the_card_s_colours(
    datasets: Datasets, own_data: Path, place: str
) -> None:
    images, masks = own_data / "bands" / "train" / "images", own_data / "bands" / "train" / "masks"
    cv2.imwrite(str(images / "b00.png"), np.full((200, 400, 3), 100, np.uint8))
    mask = np.full((200, 400), 255, np.uint8)
    mask[:, :200] = 1  # wall, (70, 70, 70); the rest is ignored
    cv2.imwrite(str(masks / "b00.png"), mask)
    opened = datasets.open(place)
    picture = thumbnail(opened.card, opened.pairs()[0], masks=True)
    assert picture.shape == (80, WIDTH, 3)
    assert tuple(picture[40, 20]) == (83, 83, 83)  # 0.45 · 100 + 0.55 · 70 = 83.5
    assert tuple(picture[40, 140]) == (100, 100, 100)
    assert (thumbnail(opened.card, opened.pairs()[0], masks=False) == 100).all()


def test_pages_of_thumbnails_are_kept_and_a_broken_file_is_none(datasets: Datasets, own_data: Path, place: str) -> None:
    (own_data / "bands" / "train" / "images" / "b01.png").write_bytes(b"no picture")
    opened, thumbnails = datasets.open(place), Thumbnails()
    first, broken = thumbnails.page(opened.version, opened.card, opened.pairs()[:2], masks=True)
    assert broken is None
    assert first is not None
    assert decoded(first).shape == (64, 96, 3)
    assert thumbnails.page(opened.version, opened.card, opened.pairs()[:1], masks=True)[0] is first
    assert thumbnails.page("another", opened.card, opened.pairs()[:1], masks=True)[0] is not first


def test_the_memory_for_thumbnails_is_bounded(datasets: Datasets, place: str) -> None:
    opened = datasets.open(place)
    size = len(Thumbnails().page("", opened.card, opened.pairs()[:1], masks=False)[0] or "")
    thumbnails = Thumbnails(limit=4 * size)
    thumbnails.page("", opened.card, opened.pairs(), masks=False)
    assert 0 < thumbnails._bytes <= 4 * size
    assert thumbnails._bytes == sum(map(len, thumbnails._cache.values()))


# -- new ones -----------------------------------------------------------------------------------------


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return target


def test_a_zip_becomes_a_dataset_that_lists_its_problems_ever_after(
    datasets: Datasets, own_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "upload"
    shutil.copytree(own_data / "bands", folder)
    (folder / "train" / "masks" / "b05.png").unlink()
    task = datasets.add_archive(zipped(folder, tmp_path / "my bands.zip"), "", "ground, wall, sky")
    assert task.wait(SECONDS)
    assert task.problem is None
    added = task.result
    assert added["classes"] == ["ground", "wall", "sky"]
    assert added["images"] == {"train": 11, "val": 4}
    assert added["problems"]["kinds"]["unpaired"] == 1
    assert datasets.card(added["place"]).name == added["name"]

    opened = datasets.open(added["place"])
    assert datasets.read(opened).wait(SECONDS)
    reading = datasets.reading(opened)
    assert reading is not None
    assert reading.report["problems"] == added["problems"]


def test_what_is_no_dataset_is_refused_in_words_without_the_server_s_paths(
    datasets: Datasets, own_data: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "letters.zip", "w") as archive:
        archive.writestr("letter.txt", "dear")
    task = datasets.add_archive(tmp_path / "letters.zip", "", "")
    assert task.wait(SECONDS)
    assert task.state == "failed"
    assert task.problem is not None
    assert str(own_data) not in task.problem


@pytest.mark.parametrize("folder", ["bands", "../data", "/etc", None])
def test_only_folders_of_the_server_s_list_are_added(datasets: Datasets, folder: object) -> None:
    with pytest.raises(UserError, match="from the list"):
        datasets.add_folder(folder, "", "")


def test_a_folder_of_the_list_is_added(datasets: Datasets, own_data: Path) -> None:
    shutil.copytree(own_data / "bands", own_data / "more")
    assert datasets.folders() == ["more"]
    task = datasets.add_folder("more", "second", "")
    assert task.wait(SECONDS)
    assert task.problem is None
    assert task.result["name"] == "second"
    assert datasets.folders() == []
