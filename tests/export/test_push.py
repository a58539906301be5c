"""Pushing to a hub: against a stand-in on this machine that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import ModelCard, constants

from segskd.cli import main
from segskd.errors import UserError
from segskd.export import timing
from segskd.export.certificate import Package
from segskd.export.formats import Spec
from segskd.export.package import package
from segskd.export.push import TOKEN, Hub
from segskd.models.build import describe, load
from segskd.runs import Run

pytestmark = pytest.mark.slow


class Repository(BaseHTTPRequestHandler):
    """Keeps what is committed, in the class; answers all else as the hub does."""

    files: ClassVar[dict[str, bytes]] = {}
    made: ClassVar[list[Any]] = []
    commits: ClassVar[int] = 100
    """That it takes."""

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret":
            return self._answer({"error": "Invalid username or password."}, 401)
        here = [{"type": "file", "path": name, "size": len(b), "oid": "0" * 40} for name, b in self.files.items()]
        if "/tree/" in self.path:
            return self._answer(here)
        return self._answer({"id": "me/small", "sha": "0" * 40, "siblings": [{"rfilename": n} for n in self.files]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer secret":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            return self._answer({"url": f"http://{self.headers['Host']}/me/small", "name": "me/small", "id": "1"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        assert "/commit/" in self.path
        Repository.commits -= 1
        if Repository.commits < 0:
            return self._answer({"error": "The quota is used up."}, 403)
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del self.files[entry["value"]["path"]]
        return self._answer(
            {"commitUrl": f"http://{self.headers['Host']}/me/small/commit/0", "commitOid": "0" * 40, "success": True}
        )

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if status == 401:
            self.send_header("X-Error-Message", "Invalid username or password.")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; nothing has been pushed yet."""
    Repository.files, Repository.made, Repository.commits = {}, [], 100
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    aim(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield constants.ENDPOINT
    server.shutdown()
    thread.join()
    server.server_close()


def aim(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The hub's library reads these settings when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.mark.parametrize("name", ["safetensors", "onnx"])
def test_the_repository_holds_what_the_zip_holds(
    name: Any, run: Run, packed: Callable[[Spec], Package], hub: str, tmp_path: Path
) -> None:
    spec = Spec(name)
    package = packed(spec)
    assert Hub("me/small").push(package, spec) == f"{hub}/me/small"
    assert {(made["organization"], made["name"], made["visibility"]) for made in Repository.made} == {
        ("me", "small", "private")
    }
    with zipfile.ZipFile(package.path) as archive:
        inside = {Path(entry).name: archive.read(entry) for entry in archive.namelist()}
    assert set(inside) <= set(Repository.files) <= {*inside, ".gitattributes"}
    different = {file for file, content in inside.items() if Repository.files[file] != content}
    assert different <= {"README.md", "config.json", "model.safetensors"}
    card = ModelCard(Repository.files["README.md"].decode())
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.library_name == ("segmentation-models-pytorch" if name == "safetensors" else "onnx")
    assert card.data.license is None
    assert card.text.strip() == inside["README.md"].decode().strip()
    if name == "safetensors":
        for file in ("config.json", "model.safetensors"):
            (tmp_path / file).write_bytes(Repository.files[file])
        ours, theirs = load(run.model_folder).state_dict(), load(tmp_path).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_network_in_another_format_is_not_laid_beside(packed: Callable[[Spec], Package], hub: str) -> None:
    Repository.files = {"model.onnx": b"theirs", "card.json": b"{}"}
    with pytest.raises(UserError, match=r"^me/small holds model\.onnx: push safetensors to another repository$"):
        Hub("me/small").push(packed(Spec()), Spec())
    assert Repository.files == {"model.onnx": b"theirs", "card.json": b"{}"}


def test_a_wrong_token_is_told(packed: Callable[[Spec], Package], hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "wrong")
    with pytest.raises(UserError, match=r"^the push to me/small failed: .*Invalid username or password"):
        Hub("me/small").push(packed(Spec()), Spec())
    assert Repository.files == {}


@pytest.mark.parametrize("token", ["secret\n", " secret \r\n"])
def test_blanks_around_a_token_are_none_of_it(
    token: str, packed: Callable[[Spec], Package], hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, token)
    Hub("me/small").push(packed(Spec("pt2")), Spec("pt2"))
    assert "model.pt2" in Repository.files


@pytest.mark.parametrize("token", ["sec ret", "secrét", "secret\nsecret"])
def test_what_can_be_no_token_is_not_repeated(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(UserError, match="the value of HF_TOKEN is no token") as raised:
        Hub("me/small")
    assert "sec" not in str(raised.value)


def test_a_whole_network_after_a_pruned_one(
    narrow_run: Run,
    packed: Callable[[Spec], Package],
    hub: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "REPEATS", 5)
    Hub("me/small").push(package(narrow_run, Spec(), tmp_path / "narrow"), Spec())
    assert "narrow.py" in Repository.files
    assert describe(load(stored(tmp_path / "first"))) == "unet:resnet10 pruned by 50 %"
    Hub("me/small").push(packed(Spec()), Spec())
    assert "narrow.py" not in Repository.files
    assert json.loads(Repository.files["certificate.json"])["network"] == "unet:resnet10"
    assert describe(load(stored(tmp_path / "second"))) == "unet:resnet10"


def test_a_push_that_breaks_off_leaves_no_old_certificate(
    packed: Callable[[Spec], Package], hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repository.files = {"certificate.json": b"another network's"}
    Repository.commits = 1
    with pytest.raises(UserError, match="the push to me/small failed"):
        Hub("me/small").push(packed(Spec()), Spec())
    assert "model.safetensors" in Repository.files
    assert "certificate.json" not in Repository.files


def stored(folder: Path) -> Path:
    """What the stand-in has, as files."""
    folder.mkdir()
    for name, content in Repository.files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_hub_out_of_reach(packed: Callable[[Spec], Package], monkeypatch: pytest.MonkeyPatch) -> None:
    aim(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^the push to me/small failed: .*refused"):
        Hub("me/small").push(packed(Spec()), Spec())


@pytest.mark.parametrize("name", ["small", "a/b/c", "../small", "me/sm all"])
def test_names_that_are_no_repository(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    with pytest.raises(UserError, match="write OWNER/NAME"):
        Hub(name)


def test_without_a_token_nothing_begins(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that an earlier login left on the disk is not looked for."""
    monkeypatch.delenv(TOKEN, raising=False)
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    out = tmp_path / "out"
    assert main(["export", str(run.path), "--push", "me/small", "--out", str(out)]) == 2
    assert "set the environment variable HF_TOKEN to it" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_on_the_command_line(
    run: Run, hub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "REPEATS", 5)
    assert main(["export", str(run.path), "--push", "me/small", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pushed"] == f"{hub}/me/small"
    assert json.loads(Repository.files["certificate.json"])["run"] == run.name
    assert Path(told["package"]).exists()
