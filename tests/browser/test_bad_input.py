"""What nobody should send, and files that somebody spoilt: a plain message each time, and the server goes on."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Dialog, Locator, Page, expect
from serving import LIMIT, Server

from segskd.distill.running.session import start
from segskd.run_admin import write_note
from segskd.runs import Run
from segskd.study.grid import dump_study, make_study

MARKUP = "<img src=x onerror=alert(1)>"
NAMED = "a run's name has letters, digits"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module", autouse=True)
def whole(server: Server, data: Path, card_path: Path, teacher_folder: Path, recipe: Callable[..., Any]) -> Run:
    """A finished run on a dataset whose classes and files have markup for names, and a note with some."""
    server.furnish(data, teacher_folder)
    shutil.copytree(server.data / "bands", server.data / "odd")
    for file in (server.data / "odd").glob("*/*/b00.png"):
        file.rename(file.with_stem(MARKUP))
    card = yaml.safe_load(card_path.read_text())
    classes = [{**entry, "name": f"{MARKUP}{entry['name']}"} for entry in card["classes"]]
    odd = server.data / "odd.yaml"
    odd.write_text(yaml.safe_dump(card | {"name": "odd", "title": MARKUP, "folder": "odd", "classes": classes}))
    asked = {"data": {"card": str(odd), "folder": str(server.data)}, "teacher": str(server.data / "bands-teacher")}
    run = Run(server.runs / "whole")
    start(recipe(**asked, optimisation={"epochs": 1}), run.path)
    write_note(run, MARKUP)
    return run


@pytest.fixture(autouse=True)
def _goes_on(server: Server, page: Page) -> Iterator[None]:
    """No dialog opens and no element is made of a name; in the end the server answers."""
    opened: list[str] = []

    def heard(dialog: Dialog) -> None:
        opened.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", heard)
    yield
    assert opened == []
    assert page.locator("[onerror], img[src='x']").count() == 0
    with urlopen(f"{server.url}/config", timeout=LIMIT) as answer:
        assert answer.status == 200


@pytest.fixture
def files(server: Server) -> Iterator[None]:
    """Nothing is left of what was refused."""
    before = listing(server)
    yield
    assert listing(server) == before


def listing(server: Server) -> set[Path]:
    """What lies in the server's folders and beside them."""
    top = [*server.runs.iterdir(), *server.data.iterdir(), *server.data.parent.iterdir()]
    return {path for path in top if not path.name.startswith(".")}


# -- zips -----------------------------------------------------------------------------------------


def picture(size: tuple[int, int] = (64, 96), value: int | None = None) -> bytes:
    """A PNG: of one value, or of noise."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (*size, 3)) if value is None else np.full(size, value)
    return bytes(cv2.imencode(".png", pixels.astype(np.uint8))[1])


def no_zip(target: Path) -> None:
    target.write_text("I am a letter, and no archive")


def bomb(target: Path) -> None:
    """A hundred kilobytes that unpack to a hundred megabytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(101 * 10**6))
    assert target.stat().st_size < 2 * 10**5


def leading_out(target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("../../out.png", picture())


def no_pictures(target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(4):
            archive.writestr(f"images/{number}.png", "I am a letter, and no image")
            archive.writestr(f"masks/{number}.png", picture(value=number % 2))


def add(page: Page, archive: Path, classes: str = "") -> Locator:
    """Uploads a zip on Data; where it says what came of it."""
    page.get_by_role("button", name="Add a dataset", exact=False).click()
    page.locator("#data-zip input[type=file]").set_input_files(archive)
    expect(page.locator("#data-zip")).to_contain_text(archive.stem)
    page.locator("#data-classes").get_by_role("textbox").fill(classes)
    page.get_by_role("button", name="Add this dataset", exact=True).click()
    return page.locator("#data .added")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_zip, "'bad.zip' is no zip file"),
        (bomb, "unpacks to 101 MB from far fewer bytes"),
        (leading_out, "its member '../../out.png' leads outside the dataset's folder"),
        (no_pictures, "can't read image"),
    ],
)
def test_a_zip_that_is_refused(
    open_tab: Callable[[str], Page], tmp_path: Path, files: None, make: Spoil, said: str
) -> None:
    make(tmp_path / "bad.zip")
    page = open_tab("data")
    expect(add(page, tmp_path / "bad.zip")).to_contain_text(said)


def test_files_that_cannot_be_used_are_listed_by_name(open_tab: Callable[[str], Page], tmp_path: Path) -> None:
    """One mask with a value that is no class, one of another size, one that is cut; and markup for names."""
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        for number in range(12):
            archive.writestr(f"images/p{number}{MARKUP}.png", picture())
            archive.writestr(f"masks/p{number}{MARKUP}.png", picture(value=number % 2))
        spoilt = {"wrong": picture(value=7), "small": picture((32, 48), 1), "cut": picture(value=1)[:60]}
        for name, mask in spoilt.items():
            archive.writestr(f"images/{name}.png", picture())
            archive.writestr(f"masks/{name}.png", mask)
    page = open_tab("data")
    added = add(page, tmp_path / "mixed.zip", f"{MARKUP}, sky")
    expect(added).to_contain_text("Added «mixed»")
    expect(added).to_contain_text(f"2 classes ({MARKUP}, sky)")
    problems = added.locator("li")
    for name, kind in (("wrong", "value 7"), ("small", "32x48"), ("cut", "can't read mask")):
        expect(problems.filter(has_text=f"masks/{name}.png")).to_contain_text(kind)
    expect(page.locator("#data .gallery .name").first).to_have_text(re.compile(re.escape(MARKUP)))
    expect(page.locator("#data .histogram").first).to_contain_text(MARKUP)


# -- an image of one's own ------------------------------------------------------------------------


def letter(target: Path) -> None:
    target.write_text("I am a letter, and no image")


def huge(target: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(target)


def cut_short(target: Path) -> None:
    target.write_bytes(picture()[:2000])


def test_an_own_image_that_cannot_be_read(open_tab: Callable[[str], Page], tmp_path: Path) -> None:
    spoilt = [
        (letter, "letter.png", "'letter.png' is no picture"),
        (huge, "huge.png", "'huge.png' has 400.0 megapixels, and at most 100 are read"),
        (cut_short, f"{MARKUP}.png", "onerror=alert(1).png' is damaged or cut short"),
    ]
    page = open_tab("compare&run=whole")
    expect(page.locator("#compare .compare-view")).to_have_attribute("data-shown", re.compile("."))
    for make, name, said in spoilt:
        make(tmp_path / name)
        page.locator("#compare-upload input[type=file]").set_input_files(tmp_path / name)
        expect(page.locator("#compare-upload .notice.problem")).to_contain_text(said)
    Image.new("RGB", (200, 120)).save(tmp_path / "sound.png")
    page.locator("#compare-upload input[type=file]").set_input_files(tmp_path / "sound.png")
    expect(page.locator("#compare-upload .notice.hint")).to_contain_text("no truth to compare")
    page.locator("#compare-native input").check()
    seen = page.get_by_text(re.compile(r"seen at 120 × 200, by tiles of \d+ × \d+"))
    expect(seen).to_be_visible()


def test_an_own_image_waits_for_the_run(open_tab: Callable[[str], Page]) -> None:
    page = open_tab("compare&run=whole")
    expect(page.locator("#compare .compare-view")).to_have_attribute("data-shown", re.compile("."))
    expect(page.locator("#compare-upload")).to_be_visible()
    page.evaluate("document.querySelector('#compare .compare-bench').hidden = true")  # as while a run is loaded
    expect(page.locator("#compare-upload")).to_be_hidden()


def test_epochs_that_no_stage_can_have(open_tab: Callable[[str], Page]) -> None:
    page = open_tab("compare&run=whole")
    expect(page.locator("#compare .compare-view")).to_have_attribute("data-shown", re.compile("."))
    page.get_by_role("button", name="First errors", exact=True).click()
    again = page.get_by_role("button", name=re.compile("^Retrain from "))
    problem = page.locator("#compare .compare-retrain .notice")
    for epochs in ("-1", "0", "1.5", "100001", ""):
        page.get_by_label("Epochs for each stage", exact=True).fill(epochs)
        expect(again).to_be_disabled()
        expect(problem).to_have_text("Epochs: a whole number from 1 to 100,000.")
    page.get_by_label("Epochs for each stage", exact=True).fill("1")
    expect(again).to_have_text(re.compile("for 1 more epoch$"))
    expect(again).to_be_enabled()
    expect(problem).to_be_hidden()


# -- runs whose files are gone or half-written ----------------------------------------------------


def empty_recipe(run: Path) -> None:
    (run / "recipe.yaml").write_text("")


def cut_result(run: Path) -> None:
    content = (run / "result.json").read_bytes()
    (run / "result.json").write_bytes(content[: len(content) // 2])


def broken_events(run: Path) -> None:
    """A line cut in the middle, one that is no text, some that are no events, and an end without an end."""
    lines = (run / "events.jsonl").read_bytes().splitlines()
    begun = next(number for number, line in enumerate(lines) if b'"phase_start"' in line)
    lines[begun] = lines[begun][: len(lines[begun]) // 2]
    lines[begun + 1] = b"\x00\xff{]"
    lines[begun + 2 : begun + 2] = [
        b"[1, 2]",
        b'{"kind": 7}',
        b'{"kind": "phase_end"}',
        b'{"kind": "start", "time": 0}',
    ]
    (run / "events.jsonl").write_bytes(b"\n".join(lines)[:-9])


def no_student(run: Path) -> None:
    shutil.rmtree(run / "student")


def no_previews(run: Path) -> None:
    shutil.rmtree(run / "previews")


def cut_previews(run: Path) -> None:
    for file in run.glob("previews/*/*.png"):
        file.write_bytes(file.read_bytes()[:40])


@pytest.fixture
def spoilt(server: Server, whole: Run) -> Iterator[Callable[[Spoil], str]]:
    """A copy of the whole run with something done to it; its name."""
    place = server.runs / "spoilt"

    def make(spoil: Spoil) -> str:
        shutil.copytree(whole.path, place, ignore=shutil.ignore_patterns("compare"))
        spoil(place)
        return place.name

    yield make
    shutil.rmtree(place)


SPOILT: list[tuple[Spoil, dict[str, str]]] = [
    (
        empty_recipe,
        {
            "watch": "The run's files are damaged or missing.",
            "compare": "the files of spoilt are damaged",
            "runs": "damaged",
            "export": "spoilt is damaged",
        },
    ),
    (
        cut_result,
        {
            "watch": "result.json is damaged: delete it and resume the run",
            "compare": "What the student retained",
            "runs": "damaged",
            "export": "spoilt is damaged",
        },
    ),
    (
        broken_events,
        {"watch": "of training", "compare": "What the student retained", "runs": "finished", "export": "spoilt"},
    ),
    (
        no_student,
        {
            "watch": "of training",
            "compare": "the trained network of spoilt is missing: put its folder student/ back",
            "runs": "finished",
        },
    ),
    (
        no_previews,
        {"watch": "are not in the run’s folder", "compare": "What the student retained", "runs": "finished"},
    ),
    (cut_previews, {"watch": "its file can’t be read", "compare": "What the student retained"}),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_run_whose_files_are_spoilt(
    open_tab: Callable[[str], Page], spoilt: Callable[[Spoil], str], spoil: Spoil, said: dict[str, str]
) -> None:
    page = open_tab(f"watch&run={spoilt(spoil)}")
    for tab, text in said.items():
        page.get_by_role("tab", name=tab.title(), exact=True).click()
        place = page.locator("#runs tr", has_text="spoilt") if tab == "runs" else page.locator(f"#tab-{tab}")
        expect(place).to_contain_text(text)
    assert page.locator("#watch").get_by_text(re.compile(r"\d{3} h")).count() == 0


def test_an_export_without_its_network_says_so(open_tab: Callable[[str], Page], spoilt: Callable[[Spoil], str]) -> None:
    page = open_tab(f"export&run={spoilt(no_student)}")
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.locator("#tab-export")).to_contain_text("no model")


# -- names and texts ------------------------------------------------------------------------------


@pytest.fixture
def form(open_tab: Callable[[str], Page]) -> Page:
    """Distill, with what it proposes."""
    page = open_tab("")  # a link to a tab opens it once more when the page is loaded
    page.get_by_role("button", name="Choose teacher and student", exact=True).click()
    expect(page.locator("#distill-plan-panel")).to_contain_text("encoder.0")
    expect(page.get_by_label("Train one first", exact=True)).to_be_checked()
    return page


def field(page: Page, name: str) -> Locator:
    """A field of Distill with the message below it."""
    return page.locator("#distill .field", has=page.locator(f"#distill-{name}")).last


def test_a_name_that_no_run_can_have(form: Page, files: None) -> None:
    names = [("../out", NAMED), (MARKUP, NAMED), ("/etc/passwd", NAMED), ("whole", "there is already a run whole")]
    for name, said in names:
        field(form, "name").get_by_role("textbox").fill(name)
        expect(field(form, "name").locator(".notice")).to_contain_text(said)
    form.locator("#distill-start").click()
    expect(form.locator("#distill-notice")).to_contain_text("Not started: there is already a run whole")


def test_more_epochs_than_a_page_can_hold(form: Page) -> None:
    epochs = field(form, "epochs").get_by_role("textbox")
    epochs.fill("9" * 20)
    expect(field(form, "epochs").locator(".notice")).to_contain_text("must be at most 1000000000")
    epochs.fill("2")
    expect(form.locator("#distill-plan-panel")).to_contain_text("encoder.0")
    expect(field(form, "epochs").locator(".notice")).not_to_contain_text("must be")


def test_a_hub_id_that_is_none(form: Page, files: None) -> None:
    form.get_by_label("From a hub", exact=True).check()
    rule = "a hub id is OWNER/NAME"
    for hub, said in [("no id", rule), ("ui/tabs", "ui/tabs is a folder of this server"), ("../etc", rule)]:
        field(form, "hub").get_by_role("textbox").fill(hub)
        expect(field(form, "hub").locator(".notice")).to_contain_text(said)


def test_a_recipe_that_cannot_be_loaded(form: Page, tmp_path: Path) -> None:
    spoilt = [
        ("data: [", "a.yaml is not YAML"),
        (f"data: {{card: '{MARKUP}'}}\nmethod: supervised", f"no card '{MARKUP}'"),
        ("data: {card: ../../secret.yaml}\nmethod: supervised", "this dataset is not on this server"),
        ("data: {card: bands, size: huge}", "'huge' is not a size"),
    ]
    form.get_by_role("button", name="The same as a command and as a recipe").click()
    for (content, said), name in zip(spoilt, "abcd", strict=True):
        (tmp_path / f"{name}.yaml").write_text(content)
        form.locator("#distill-same input[type=file]").set_input_files(tmp_path / f"{name}.yaml")
        expect(form.locator("#distill-same .notice")).to_contain_text(said)


def test_an_uploaded_teacher_that_is_none(form: Page, tmp_path: Path) -> None:
    form.get_by_label("On this server, or upload it", exact=True).check()
    for make, name, said in [(bomb, "bomb.zip", "far fewer bytes"), (leading_out, "out.zip", "leads outside")]:
        make(tmp_path / name)
        field(form, "known").locator("input[type=file]").set_input_files(tmp_path / name)
        expect(field(form, "known").locator(".notice")).to_contain_text(said)


@pytest.fixture
def study(server: Server, whole: Run) -> Run:
    """A study with markup for a title and for the last words of a cell; its other cell is finished."""
    shared = {"data": {"card": whole.recipe.data.card, "folder": str(server.data), "size": "64x96"}}
    axes: dict[str, Any] = {"methods": ["stagewise", "supervised"], "fractions": [0.5], "passes": 12}
    content = {"name": "grid", "title": MARKUP, "recipe": shared | {"teacher": whole.recipe.teacher}, **axes}
    made = Run(server.runs / "grid")
    made.write("study.yaml", dump_study(make_study(content, "study")).encode())
    failed = {"supervised-resnet10-50pc-s0": MARKUP}
    made.write_json("progress.json", {"images": 12, "working": [], "failed": failed})
    made.write("stagewise-resnet10-50pc-s0/result.json", (whole.path / "result.json").read_bytes())
    made.write("table.md", MARKUP.encode())
    return made


def test_names_with_markup_stand_there_as_text(open_tab: Callable[[str], Page], study: Run) -> None:
    places = [
        ("data", "#data .tiles"),
        ("watch", "#watch .legend"),
        ("compare", "#compare .compare-legend"),
        ("compare", "#compare .compare-table"),
        ("compare", "#compare .compare-gallery"),
    ]
    page = open_tab("watch&run=whole")
    for tab, place in places:
        page.get_by_role("tab", name=tab.title(), exact=True).click()
        expect(page.locator(place)).to_contain_text(MARKUP)
    page.get_by_role("tab", name="Runs", exact=True).click()
    page.locator("#runs").get_by_text("whole", exact=True).first.click()
    expect(page.locator("#runs").get_by_label("Note", exact=True)).to_have_value(MARKUP)
    shown = page.locator("#runs .studies-study")
    expect(shown.locator("summary")).to_have_text(f"{MARKUP}✕ failed, 1 of 2 cells finished")
    expect(shown).to_contain_text(f"supervised-resnet10-50pc-s0 failed: {MARKUP}")
    miou = study.read_json("stagewise-resnet10-50pc-s0/result.json")["miou"]
    expect(shown.locator(".studies-table tr", has_text="stagewise")).to_contain_text(f"{miou:.3f}")
    expect(shown.locator(".studies-table tr", has_text="stagewise")).not_to_contain_text("±")
    shown.locator("svg.studies-plot").focus()
    page.keyboard.press("ArrowRight")
    expect(shown.locator(".studies-tip")).to_contain_text(
        f"stagewise, 6 images (50\u00a0%): mIoU {100 * miou:.1f}\u00a0%"
    )
    with page.expect_download() as download:
        shown.get_by_role("button", name="table.md", exact=True).click()
    assert download.value.suggested_filename == "grid-table.md"
    assert download.value.path().read_text() == MARKUP
