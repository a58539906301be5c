"""The sample dataset: the same scenes everywhere, masks that fit, and no half-written folder."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs, read_mask
from segskd.data.pixels import read_image
from segskd.errors import UserError
from segskd.scenes import dataset as scenes
from segskd.scenes.cars import Car
from segskd.scenes.parts import CAR, PERSON, POLE, Camera, Canvas
from segskd.scenes.street import lay_out

SMALL = {"train": 3, "val": 2, "test": 1}
SKY, ROAD = 0, 2
# Of scene 3 of val: pixels of each class, the mask's checksum, the mean of red, green and blue.
COUNTS = [8796, 11360, 18191, 566, 881, 3592, 265, 5032, 469]
SHA256 = "afbf2a4712dd4e485e48248826bcbdb3cf6319c09443e58f2704249b3153dded"
MEANS = [138.16, 134.21, 132.56]


@pytest.fixture(scope="module")
def sample() -> list[tuple[np.ndarray, np.ndarray]]:
    return [scenes.draw_scene("train", index) for index in range(40)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SIZES", SMALL)


def test_a_scene_has_the_promised_form(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, mask in sample:
        assert (image.shape, image.dtype) == ((192, 256, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((192, 256), np.uint8)
        assert set(np.unique(mask)) <= {*range(9), 255}


def test_the_same_scene_is_drawn_again(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    image, mask = scenes.draw_scene("train", 7)
    assert np.array_equal(image, sample[7][0])
    assert np.array_equal(mask, sample[7][1])


def test_scenes_stay_what_they_were() -> None:
    """When this fails, the scenes have changed: raise scenes.VERSION, then write down the new figures."""
    assert scenes.VERSION == "1"
    image, mask = scenes.draw_scene("val", 3)
    assert np.bincount(mask.ravel(), minlength=9).tolist() == COUNTS
    assert hashlib.sha256(mask.tobytes()).hexdigest() == SHA256
    # Colours may differ in the last place where a processor rounds in another way.
    assert image.mean(axis=(0, 1)) == pytest.approx(MEANS, abs=0.05)


def test_no_scene_comes_twice(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    others = [scenes.draw_scene(split, index) for split in ("val", "test") for index in (0, 1)]
    seen = {mask.tobytes() for _, mask in sample + others}
    assert len(seen) == len(sample) + len(others)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"no split 'training'.*train, val, test"):
        scenes.draw_scene("training", 0)


def test_classes_are_well_spread(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    masks = [mask for _, mask in sample]
    share = {label: sum((mask == label).any() for mask in masks) / len(masks) for label in range(9)}
    assert min(share[label] for label in range(8)) >= 0.9
    assert share[PERSON] >= 0.6
    pixels = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256) / masks[0].size / 40
    assert pixels[:9].max() < 0.5
    assert pixels[255] < 0.03


def test_only_a_bonnet_at_the_lower_edge_is_ignored(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ignored = [mask == 255 for _, mask in sample]
    some = [area for area in ignored if area.any()]
    assert 0 < len(some) < len(ignored) / 2
    for area in some:
        assert area[-1].all()
        assert not area[: 192 - 23].any()


def test_thin_and_far_things_are_there(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Poles of a single pixel's width, and persons from a few pixels to a fifth of the picture's height."""
    runs, heights = set(), []
    for _, mask in sample:
        for row in mask == POLE:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
            runs.update((edges[1::2] - edges[::2]).tolist())
        boxes = cv2.connectedComponentsWithStats((mask == PERSON).astype(np.uint8))[2]
        heights += boxes[1:, cv2.CC_STAT_HEIGHT].tolist()
    assert {1, 2} <= runs
    assert min(heights) <= 5
    assert max(heights) >= 38


def test_sky_is_above_road(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, mask in sample:
        sky, road = np.nonzero(mask == SKY)[0], np.nonzero(mask == ROAD)[0]
        assert sky.max() < road.max()
        assert np.median(sky) < 96 < np.median(road)


def test_colour_alone_does_not_tell_the_classes(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """The best guess from a pixel's colour, learned from these very scenes, is far from the truth."""
    counts = np.zeros((16**3, 9))
    for image, mask in sample:
        bins = (image // 16).astype(int) @ [256, 16, 1]
        np.add.at(counts, (bins[mask < 9], mask[mask < 9]), 1)
    found = np.zeros((9, 9))
    for label in range(9):
        np.add.at(found[label], counts.argmax(axis=1), counts[:, label])
    iou = found.diagonal() / (found.sum(axis=0) + found.sum(axis=1) - found.diagonal())
    assert iou.mean() < 0.4


def spread_within_classes(image: np.ndarray, mask: np.ndarray) -> float:
    """How much colours differ inside the classes of a mask, as a share of how much they differ in all."""
    pixels = image.reshape(-1, 3).astype(float)
    within = sum(pixels[mask.ravel() == label].var(axis=0).sum() * (mask == label).sum() for label in np.unique(mask))
    return float(within / (pixels.var(axis=0).sum() * len(pixels)))


def test_masks_fit_their_images(sample: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """A mask explains its image's colours better than its mirror image does, or one moved by two pixels."""
    for image, mask in sample:
        fitting = spread_within_classes(image, mask)
        others = [mask[:, ::-1], *(np.roll(mask, by, axis) for by in (-2, 2) for axis in (0, 1))]
        assert fitting < min(spread_within_classes(image, other) for other in others)


def test_the_ground_is_where_it_is_projected() -> None:
    """Camera.ground turns Camera.project around, by two ways of computing."""
    camera = lay_out(np.random.default_rng(3)).camera
    x, z = camera.ground(300)
    for row, column in ((0, 40), (30, 256), (80, 500)):
        at = camera.project(float(x[row, column]), 0.0, float(z[row, column]))
        assert at == pytest.approx([column, 300 + row], abs=0.5)


def test_image_and_mask_change_together() -> None:
    """Whatever a car paints into the image it also writes into the mask, and the other way round."""
    camera = Camera(focal=400, centre=256, horizon=180, height=1.5, side=1.5, curve=0, roll=0)
    light = lay_out(np.random.default_rng(0)).light
    canvas = Canvas()
    Car(np.random.default_rng(5), 0.0, 12.0, 0.3).draw(canvas, camera, light)
    assert np.array_equal(canvas.image.any(axis=2), canvas.mask == CAR)
    rows, columns = np.nonzero(canvas.mask)
    # 400 px · (1.5 m - height) / 12 m: from the wheels' foot near row 230 up to a roof of 1.4 to 2.1 m.
    assert 150 <= rows.min() <= 185
    assert 225 <= rows.max() <= 245
    assert 45 <= np.ptp(columns) <= 150


@pytest.mark.usefixtures("small")
def test_generate_writes_what_draw_scene_draws(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    scenes.generate(tmp_path / "scenes", lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]
    card = load_card("scenes")
    for split, size in SMALL.items():
        pairs = list_pairs(card, tmp_path, split)
        assert [pair.name for pair in pairs] == [f"scene_{n:04d}" for n in range(size)]
        image, mask = scenes.draw_scene(split, size - 1)
        assert np.array_equal(read_image(pairs[-1].image, card), image)
        assert np.array_equal(read_mask(pairs[-1].mask, card), mask)
        assert cv2.imread(str(pairs[-1].mask), cv2.IMREAD_UNCHANGED).ndim == 2
    assert scenes.is_current(tmp_path / "scenes")
    assert (tmp_path / "scenes" / "VERSION").read_text() == f"{scenes.VERSION}\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"scenes", ".scenes.lock"}


def test_the_card_knows_the_sizes() -> None:
    card = load_card("scenes")
    assert (
        {name: split.count for name, split in card.splits.items()}
        == scenes.SIZES
        == {
            "train": 400,
            "val": 100,
            "test": 100,
        }
    )
    assert card.class_names == ["sky", "building", "road", "marking", "pavement", "tree", "pole", "car", "person"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    draw = scenes.draw_scene

    def draw_three(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == "val":
            raise error
        return draw(split, index)

    monkeypatch.setattr(scenes, "draw_scene", draw_three)
    with pytest.raises(error):
        scenes.generate(tmp_path / "scenes")
    assert {path.name for path in tmp_path.iterdir()} <= {".scenes.lock"}


@pytest.mark.usefixtures("small")
def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".scenes-abc.tmp" / "new" / "train" / "images"
    left.mkdir(parents=True)
    scenes.generate(tmp_path / "scenes")
    assert scenes.is_current(tmp_path / "scenes")
    assert {path.name for path in tmp_path.iterdir()} <= {"scenes", ".scenes.lock"}


@pytest.mark.usefixtures("small")
def test_scenes_of_an_older_version_are_drawn_anew(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    scenes.generate(folder)
    (folder / "VERSION").write_text("0\n")
    (folder / "train" / "images" / "scene_0001.png").write_bytes(b"old")
    assert not scenes.is_current(folder)
    scenes.generate(folder)
    assert scenes.is_current(folder)
    assert cv2.imread(str(folder / "train" / "images" / "scene_0001.png")) is not None


@pytest.mark.usefixtures("small")
def test_a_lost_file_is_noticed(tmp_path: Path) -> None:
    scenes.generate(tmp_path / "scenes")
    (tmp_path / "scenes" / "val" / "masks" / "scene_0001.png").unlink()
    assert not scenes.is_current(tmp_path / "scenes")


@pytest.mark.usefixtures("small")
def test_nothing_is_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once: one draws, the other waits and finds all done."""
    draw, drawn = scenes.draw_scene, []

    def draw_and_count(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append((split, index))
        return draw(split, index)

    monkeypatch.setattr(scenes, "draw_scene", draw_and_count)
    threads = [threading.Thread(target=scenes.generate, args=(tmp_path / "scenes",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 6
    assert scenes.is_current(tmp_path / "scenes")


@pytest.mark.usefixtures("small")
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds files that are no sample scenes"):
        scenes.generate(tmp_path / "scenes")
    assert (tmp_path / "scenes" / "thesis.txt").read_text() == "years of work"


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match=r"can't write the sample scenes to .*No space left on device.*--data") as said:
        scenes.generate(tmp_path / "scenes")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "scenes").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't write the sample scenes"):
        scenes.generate(tmp_path / "file" / "scenes")


@pytest.mark.usefixtures("small")
def test_the_parts_of_two_processes_are_all_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[tuple[str, int]]] = [[], []]
    blank = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)
    for split in SMALL:
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
    for part in range(2):
        monkeypatch.setattr(scenes, "draw_scene", lambda *scene, part=part: (drawn[part].append(scene), blank)[1])
        scenes._write_part(tmp_path, part, 2, lambda: None)
    assert [len(scene) for scene in drawn] == [3, 3]
    assert sorted(drawn[0] + drawn[1]) == sorted((split, n) for split, size in SMALL.items() for n in range(size))


def test_many_scenes_are_split_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, str, list[str]]] = []
    monkeypatch.setattr(scenes, "processes_for", lambda total, least: 3 if (total, least) == (600, 50) else 1)
    monkeypatch.setattr(scenes, "split_among", lambda count, module, given, told: calls.append((count, module, given)))
    scenes.generate(tmp_path / "scenes")
    ((count, module, given),) = calls
    assert (count, module, Path(given[0]).name) == (3, scenes.__name__, "new")


def test_a_process_of_its_own_draws_the_same_and_tells(tmp_path: Path) -> None:
    """Of 600 processes the one numbered 405 has one scene, the sixth of val."""
    for kind in ("images", "masks"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    command = [sys.executable, "-m", scenes.__name__, str(tmp_path), "405", "600"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    image, mask = scenes.draw_scene("val", 5)
    assert np.array_equal(read_image(tmp_path / "val" / "images" / "scene_0005.png", load_card("scenes")), image)
    assert np.array_equal(cv2.imread(str(tmp_path / "val" / "masks" / "scene_0005.png"), cv2.IMREAD_UNCHANGED), mask)
    (tmp_path / "val" / "images").rename(tmp_path / "gone")
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{errno.ENOENT}\n"
