"""The teachers of a server: which there are, which fits, and what is kept of an upload."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segskd.config import Recipe
from segskd.data.cards import Card, load_card
from segskd.errors import UserError
from segskd.models.build import create, load
from segskd.runs import Run
from ui.context import Context
from ui.jobs import Jobs
from ui.state.teachers import add_upload, best_teacher, check_hub_id, find_teacher, fits, list_teachers


@pytest.fixture
def context(tmp_path: Path) -> Context:
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    runs.mkdir()
    return Context(data, runs, Jobs(runs, data))


def finish(run: Run, model: Path, miou: float) -> Run:
    """As if the run had ended with that model."""
    folder = run.model_folder
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model / name, folder / name)
    run.write_json("result.json", {"dataset": "bands", "miou": miou})
    return run


@pytest.fixture
def teach(recipe: Callable[..., Recipe]) -> Recipe:
    content = recipe().model_dump(mode="json") | {"kind": "teach", "teacher": None, "student": "linknet:tu-test_resnet"}
    return Recipe.model_validate(content)


def test_runs_uploads_and_folders_are_listed(
    context: Context, recipe: Callable[..., Recipe], teach: Recipe, teacher_folder: Path
) -> None:
    finish(Run.create(context.runs / "good", teach), teacher_folder, 0.5)
    finish(Run.create(context.runs / "small", recipe()), teacher_folder, 0.25)
    Run.create(context.runs / "student-to-be", recipe())
    Run.create(context.runs / "never-begun", teach)
    context.jobs.submit(teach, "coming")
    shutil.copytree(teacher_folder, context.data / "mine")
    (context.data / "empty").mkdir()
    shutil.copytree(teacher_folder, context.runs / "bare")
    add_upload([teacher_folder / name for name in ("config.json", "model.safetensors")], context.runs)

    found = {teacher.key: teacher for teacher in list_teachers(context)}
    assert found.keys() == {"run/good", "run/small", "run/coming", "upload/teacher", "data/mine", "runs/bare"}
    assert found["run/good"].label == "good · linknet:tu-test_resnet · 50.0 % mIoU on bands"
    assert found["run/coming"].label == "coming · linknet:tu-test_resnet · bands · waits for its training"
    assert found["data/mine"].label == "mine · linknet:tu-test_resnet"
    assert (found["run/good"].outputs, found["run/good"].size) == (3, (64, 96))
    assert (found["run/small"].place, found["run/small"].network) == (context.runs / "small", "linknet:tu-test_resnet")
    assert not found["run/coming"].ready


def test_a_run_that_finishes_or_loses_its_model_changes_the_list(
    context: Context, teach: Recipe, teacher_folder: Path
) -> None:
    context.jobs.submit(teach, "t")
    assert [teacher.state for teacher in list_teachers(context)] == ["waiting"]
    context.jobs.stop("t")
    assert list_teachers(context) == []
    finish(Run(context.runs / "t"), teacher_folder, 0.5)
    assert [teacher.state for teacher in list_teachers(context)] == ["ready"]


def test_damaged_neighbours_are_left_out(context: Context, teach: Recipe, teacher_folder: Path) -> None:
    Run.create(context.runs / "broken", teach)
    (context.runs / "broken" / "recipe.yaml").write_text(": [")
    shutil.copytree(teacher_folder, Run.create(context.runs / "odd", teach).path, dirs_exist_ok=True)
    Run(context.runs / "odd").write_json("result.json", [1])
    for name, content in {
        "no-json": "{",
        "no-object": "[]",
        "deep": "[" * 100_000,
        "long": " " * (1 << 20) + "{}",
    }.items():
        shutil.copytree(teacher_folder, context.data / name)
        (context.data / name / "config.json").write_text(content)
    assert list_teachers(context) == []


def test_a_teacher_is_found_by_key_name_or_place(context: Context, teach: Recipe, teacher_folder: Path) -> None:
    finish(Run.create(context.runs / "good", teach), teacher_folder, 0.5)
    shutil.copytree(teacher_folder, context.data / "mine")
    teachers = list_teachers(context)
    for text in ("run/good", "good", str(context.runs / "good")):
        found = find_teacher(teachers, text)
        assert found is not None
        assert found.key == "run/good"
    assert find_teacher(teachers, "mine") is None
    assert find_teacher(teachers, "/etc") is None


def test_a_student_is_the_last_to_be_proposed(
    context: Context, recipe: Callable[..., Recipe], teacher_folder: Path, card_path: Path
) -> None:
    """The newest run is often a small network that somebody has just distilled."""
    card = load_card(card_path)
    finish(Run.create(context.runs / "student", recipe()), teacher_folder, 0.6)
    chosen = best_teacher(list_teachers(context), card)
    assert chosen is not None
    assert chosen.key == "run/student"
    key = add_upload([teacher_folder / name for name in ("config.json", "model.safetensors")], context.runs)
    assert [teacher.key for teacher in list_teachers(context)] == [key, "run/student"]
    chosen = best_teacher(list_teachers(context), card)
    assert chosen is not None
    assert chosen.key == key


def test_the_best_teacher_was_trained_on_the_data(
    context: Context, recipe: Callable[..., Recipe], teach: Recipe, teacher_folder: Path, card_path: Path
) -> None:
    card = load_card(card_path)
    shutil.copytree(teacher_folder, context.data / "mine")
    chosen = best_teacher(list_teachers(context), card)
    assert chosen is not None
    assert chosen.key == "data/mine"
    finish(Run.create(context.runs / "good", teach), teacher_folder, 0.5)
    finish(Run.create(context.runs / "student", recipe()), teacher_folder, 0.6)
    chosen = best_teacher(list_teachers(context), card)
    assert chosen is not None
    assert chosen.key == "run/good"
    elsewhere = finish(Run.create(context.runs / "elsewhere", teach), teacher_folder, 0.9)  # newer, of other data
    elsewhere.write_json("result.json", {"dataset": "others", "miou": 0.9})
    chosen = best_teacher(list_teachers(context), card)
    assert chosen is not None
    assert chosen.key == "run/good"
    assert best_teacher(list_teachers(context), load_card("camvid")) is None


def test_other_classes_do_not_fit(context: Context, teach: Recipe, teacher_folder: Path, card_path: Path) -> None:
    finish(Run.create(context.runs / "good", teach), teacher_folder, 0.5)
    context.jobs.submit(teach, "coming")
    by_name = {teacher.name: teacher for teacher in list_teachers(context)}
    assert all(fits(teacher, load_card(card_path)) for teacher in by_name.values())
    with pytest.raises(UserError, match="3 outputs, but 'scenes' has 9 classes"):
        by_name["good"].check(load_card("scenes"))
    with pytest.raises(UserError, match="learns 'bands', not 'scenes'"):
        by_name["coming"].check(load_card("scenes"))


@pytest.mark.parametrize("text", ["", "name", "../x", "a/../b", "./x", "a/b/c", "/etc/x", "a/<b>", "a b/c"])
def test_what_is_no_hub_id(text: str) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        check_hub_id(text)


def test_hub_ids_are_no_folders_of_this_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_hub_id(" owner/a-model_1.0 ") == "owner/a-model_1.0"
    with pytest.raises(UserError, match="choose it from the list"):
        check_hub_id("tests/ui")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="choose it from the list"):
        check_hub_id("owner/model")


def zipped(path: Path, files: dict[str, Path | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return path


def test_a_zip_is_kept_under_a_name_of_its_own(context: Context, tmp_path: Path, teacher_folder: Path) -> None:
    files: dict[str, Path | str] = {
        f"top/{name}": teacher_folder / name for name in ("config.json", "model.safetensors")
    }
    archive = zipped(tmp_path / "my <b>model.zip", {**files, "top/notes.txt": "x", "__MACOSX/top/._config.json": "x"})
    keys = [add_upload([archive], context.runs) for _ in range(2)]
    assert keys == ["upload/my-b-model", "upload/my-b-model-2"]
    kept = context.runs / ".teachers" / "my-b-model"
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "model.safetensors"]
    assert (kept / "model.safetensors").read_bytes() == (teacher_folder / "model.safetensors").read_bytes()
    assert {teacher.key for teacher in list_teachers(context)} == set(keys)


def test_names_without_a_letter_become_teacher(context: Context, tmp_path: Path, teacher_folder: Path) -> None:
    files: dict[str, Path | str] = {name: teacher_folder / name for name in ("config.json", "model.safetensors")}
    assert add_upload([zipped(tmp_path / "модель.zip", files)], context.runs) == "upload/teacher"


class Evil:
    """Runs code when it is unpickled, unless tensors alone are."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_pickles_of_tensors_alone_are_read(context: Context, tmp_path: Path, teacher_folder: Path) -> None:
    shutil.copyfile(teacher_folder / "config.json", tmp_path / "config.json")
    pair = [tmp_path / "config.json", tmp_path / "pytorch_model.bin"]
    torch.save(load_file(teacher_folder / "model.safetensors"), pair[1])
    assert add_upload(pair, context.runs) == "upload/teacher"
    mark = tmp_path / "ran"
    torch.save({"x": Evil(mark)}, pair[1])
    with pytest.raises(UserError, match="holds more than tensors"):
        add_upload(pair, context.runs)
    assert not mark.exists()


def config(teacher_folder: Path, **changes: object) -> str:
    return json.dumps(json.loads((teacher_folder / "config.json").read_text()) | changes)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": "x"}, "holds no config.json"),
        ({"config.json": "{}"}, "weights are missing"),
        ({"config.json": "[]", "model.safetensors": "x"}, "no JSON object"),
        ({"config.json": '{"_model_class": "Nonesuch"}', "model.safetensors": "x"}, "can't be loaded"),
        ({"config.json": '{"_model_class": "Unet"}', "model.safetensors": "x"}, "can't be loaded"),
        ({"../config.json": "{}"}, "outside"),
        ({f"{number}.txt": "" for number in range(1001)}, "at most 1000 are allowed"),
    ],
)  # fmt: skip
def test_broken_uploads_leave_nothing(
    context: Context, tmp_path: Path, files: dict[str, Path | str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        add_upload([zipped(tmp_path / "up.zip", files)], context.runs)
    assert ".teachers" not in str(caught.value)
    assert list((context.runs / ".teachers").iterdir()) == []


def test_files_that_are_no_model(context: Context, tmp_path: Path, teacher_folder: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"weights\.pt doesn't belong to a model"):
        add_upload([tmp_path / "weights.pt", teacher_folder / "config.json"], context.runs)
    with pytest.raises(
        UserError, match=r"model\.safetensors is a file of weights: .* or upload its config\.json with it"
    ):
        add_upload([teacher_folder / "model.safetensors"], context.runs)
    with pytest.raises(UserError, match="neither a zip"):
        add_upload([tmp_path / "a.zip"], context.runs)


def test_a_teacher_of_grey_images_fits_no_dataset_in_colour(context: Context, tmp_path: Path, card_path: Path) -> None:
    import segmentation_models_pytorch as smp

    smp.Unet("resnet18", classes=3, encoder_weights=None, in_channels=1).save_pretrained(tmp_path / "grey")
    key = add_upload([tmp_path / "grey" / name for name in ("config.json", "model.safetensors")], context.runs)
    grey, card = find_teacher(list_teachers(context), key), load_card(card_path)
    assert grey is not None
    assert not fits(grey, card)
    with pytest.raises(UserError, match="takes 1-channel images, but 'bands' has 3: take a network"):
        grey.check(card)
    assert fits(grey, Card.model_validate({**card.model_dump(exclude={"mean", "std"}), "channels": 1}))


def test_a_file_of_weights_is_uploaded_with_the_network_that_it_is_for(context: Context, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("linknet", "resnet18", 3).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pth"
    )
    with pytest.raises(UserError, match=r"^w\.pth is a file of weights: name their network"):
        add_upload([tmp_path / "w.pth"], context.runs)
    with pytest.raises(UserError, match=r"^w\.pth "):
        add_upload([tmp_path / "w.pth"], context.runs, "linknet:resnet34")
    key = add_upload([tmp_path / "w.pth"], context.runs, " linknet:resnet18 ")
    found = find_teacher(list_teachers(context), key)
    assert found is not None
    assert (key, found.network, found.outputs) == ("upload/w", "linknet:resnet18", 3)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(load(found.place)(image), model(image))
    assert not list(context.runs.glob("uploads/.new-*"))
