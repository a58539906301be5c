"""Fetching: downloads that go on, checksums, archives that are not to be trusted. All on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from segskd.data import unpack
from segskd.data.cards import Card
from segskd.data.fetch import fetch, missing
from segskd.errors import UserError
from segskd.scenes import dataset as scenes

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63600000000200015a0d4f690000000049454e44ae426082"
)
PAIRS = {f"{kind}/{name}.png": PNG for kind in ("images", "masks") for name in ("a", "b")}


@dataclass
class Server:
    """Files over HTTP, as servers do it well or badly."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    break_after: int | None = None
    wrong_range: bool = False
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def etag(self, path: str) -> str:
        return f'"{hashlib.md5(self.files[path]).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        state.requests.append(dict(self.headers))
        content = state.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        first = self.first_byte(content)
        if first >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_part(content, first)

    def first_byte(self, content: bytes) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not self.server_state.ranges or asked is None:
            return 0
        if condition is not None and condition != self.server_state.etag(self.path):
            return 0
        return int(asked[1])

    def send_part(self, content: bytes, first: int) -> None:
        state = self.server_state
        self.send_response(206 if first else 200)
        if first:
            first = 0 if state.wrong_range else first
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if state.etags:
            self.send_header("ETag", state.etag(self.path))
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        if state.break_after is not None:
            body, state.break_after = body[: state.break_after], None
            self.close_connection = True
        state.sent += len(body)  # before it's written: the client may be done before this thread goes on
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()
    handler = type("BoundHandler", (Handler,), {"server_state": state})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{running.server_port}"
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def make_card(*archives: dict[str, str], **changes: Any) -> Card:
    content: dict[str, Any] = {
        "name": "things",
        "title": "two pictures",
        "folder": "things",
        "classes": [{"name": "no", "color": (0, 0, 0)}, {"name": "yes", "color": (1, 1, 1)}],
        "splits": {"train": {"images": "images/{name}.png", "masks": "masks/{name}.png", "count": 2}},
        "archives": archives,
    }
    return Card.model_validate(content | changes)


def offer(server: Server, content: bytes, path: str = "/things.zip", **fields: str) -> dict[str, str]:
    """Put a file on the server and describe it as a card does."""
    server.files[path] = content
    return {"url": server.url + path, "md5": hashlib.md5(content).hexdigest(), **fields}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


BIG = zipped(PAIRS | {"noise.bin": os.urandom(300_000)})


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (zipped(PAIRS), "/things.zip"),
        (tarred(PAIRS), "/things.tar"),
        (tarred(PAIRS, "w:gz"), "/things.tar.gz"),
        (tarred(PAIRS, "w:xz"), "/no-name-that-says-so"),
        (zipped(PAIRS), "/misleading.tar.gz?version=2"),
        # zipfile takes this one for a zip file, for its last member is one.
        (tarred(PAIRS | {"z.zip": zipped({"no.txt": b""})}), "/things.tar"),
    ],
)
def test_an_archive_is_unpacked_by_what_it_is(tmp_path: Path, server: Server, content: bytes, path: str) -> None:
    root = fetch(make_card(offer(server, content, path)), tmp_path)
    assert root == tmp_path / "things"
    assert files_below(root) - {"z.zip"} == set(PAIRS)
    assert (root / "images" / "a.png").read_bytes() == PNG


def test_progress_is_told_in_bytes(tmp_path: Path, server: Server) -> None:
    told: list[tuple[str, int, int | None]] = []
    fetch(make_card(offer(server, BIG)), tmp_path, lambda *step: told.append(step))
    downloading = [step for step in told if step[0] == "downloading things.zip"]
    assert [done for _, done, _ in downloading] == sorted(done for _, done, _ in downloading)
    assert downloading[-1] == ("downloading things.zip", len(BIG), len(BIG))
    unpacked = 4 * len(PNG) + 300_000
    assert told[-1] == ("unpacking things.zip", unpacked, unpacked)


def test_only_the_member_is_kept_and_goes_where_the_card_says(tmp_path: Path, server: Server) -> None:
    inside = zipped({"set-1/data/a.png": PNG, "set-1/data/b.png": PNG, "set-1/database/c.png": PNG, "x.txt": b""})
    pictures = offer(server, inside, "/images.zip", member="set-1/data", into="images")
    masks = offer(server, tarred({f"./{n}.png": PNG for n in "ab"}), "/masks.tar", into="masks")
    root = fetch(make_card(pictures, masks), tmp_path)
    assert files_below(root) == set(PAIRS)


def test_a_member_that_is_not_there(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match=r"holds nothing below 'photos'.*archives\.member"):
        fetch(make_card(offer(server, zipped(PAIRS), member="photos")), tmp_path)


def test_what_is_there_is_merged(tmp_path: Path, server: Server) -> None:
    (tmp_path / "things" / "images").mkdir(parents=True)
    (tmp_path / "things" / "images" / "mine.txt").write_text("kept")
    (tmp_path / "things" / "images" / "a.png").write_text("replaced")
    root = fetch(make_card(offer(server, zipped(PAIRS))), tmp_path)
    assert files_below(root) == set(PAIRS) | {"images/mine.txt"}
    assert (root / "images" / "a.png").read_bytes() == PNG


def test_complete_data_is_not_fetched_again(tmp_path: Path, server: Server) -> None:
    card = make_card(offer(server, zipped(PAIRS)))
    fetch(card, tmp_path)
    assert missing(card, tmp_path) == []
    told: list[str] = []
    fetch(card, tmp_path, lambda stage, done, total: told.append(stage))
    assert told == ["already complete"]
    assert len(server.requests) == 1


def test_a_lost_image_is_fetched_again(tmp_path: Path, server: Server) -> None:
    card = make_card(offer(server, zipped(PAIRS)))
    (fetch(card, tmp_path) / "masks" / "b.png").unlink()
    assert missing(card, tmp_path) == ["split 'train' has 1 images with a mask and needs 2"]
    fetch(card, tmp_path)
    assert len(server.requests) == 2
    assert missing(card, tmp_path) == []


def test_an_archive_that_lacks_images_is_said(tmp_path: Path, server: Server) -> None:
    few = zipped({name: content for name, content in PAIRS.items() if "b.png" not in name})
    with pytest.raises(UserError, match=r"was unpacked to .*split 'train' has 1 images.*mend the card"):
        fetch(make_card(offer(server, few)), tmp_path)


def test_a_broken_download_goes_on(tmp_path: Path, server: Server) -> None:
    card = make_card(offer(server, BIG))
    server.break_after = 100_000
    with pytest.raises(UserError, match=rf"{server.url}/things\.zip.*run it again to resume") as said:
        fetch(card, tmp_path)
    assert "\n" not in str(said.value)
    kept = (tmp_path / "things" / ".fetch" / "things.zip.part").stat().st_size
    assert 80_000 < kept <= 100_000
    server.sent = 0
    fetch(card, tmp_path)
    assert server.requests[1]["Range"] == f"bytes={kept}-"
    assert server.requests[1]["If-Range"] == server.etag("/things.zip")
    assert server.sent == len(BIG) - kept
    assert files_below(tmp_path / "things") == set(PAIRS) | {"noise.bin"}


def test_a_file_that_changed_meanwhile_is_fetched_whole(tmp_path: Path, server: Server) -> None:
    server.break_after = 100_000
    with pytest.raises(UserError):
        fetch(make_card(offer(server, zipped({"old.bin": os.urandom(300_000)}))), tmp_path)
    server.sent = 0
    fetch(make_card(offer(server, BIG)), tmp_path)
    assert "Range" in server.requests[1]
    assert server.sent == len(BIG)
    assert files_below(tmp_path / "things") == set(PAIRS) | {"noise.bin"}


@pytest.mark.parametrize("server_fault", [{"ranges": False}, {"wrong_range": True}, {"etags": False}])
def test_servers_that_resume_badly_or_not(tmp_path: Path, server: Server, server_fault: dict[str, bool]) -> None:
    for name, value in server_fault.items():
        setattr(server, name, value)
    card = make_card(offer(server, BIG))
    server.break_after = 100_000
    with pytest.raises(UserError):
        fetch(card, tmp_path)
    fetch(card, tmp_path)
    assert files_below(tmp_path / "things") == set(PAIRS) | {"noise.bin"}


def test_a_part_that_is_the_whole_file(tmp_path: Path, server: Server) -> None:
    """The server answers 416, for there is nothing left to send."""
    card = make_card(offer(server, BIG))
    work = tmp_path / "things" / ".fetch"
    work.mkdir(parents=True)
    (work / "things.zip.part").write_bytes(BIG)
    fetch(card, tmp_path)
    assert server.sent == 0
    assert len(server.requests) == 1
    assert files_below(tmp_path / "things") == set(PAIRS) | {"noise.bin"}


def test_a_part_that_is_longer_than_the_file(tmp_path: Path, server: Server) -> None:
    card = make_card(offer(server, BIG))
    work = tmp_path / "things" / ".fetch"
    work.mkdir(parents=True)
    (work / "things.zip.part").write_bytes(b"x" * (len(BIG) + 5))
    fetch(card, tmp_path)
    assert server.sent == len(BIG)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_another_checksum(tmp_path: Path, server: Server, kind: str) -> None:
    archive = offer(server, zipped(PAIRS))
    archive[kind] = "0" * (32 if kind == "md5" else 64)
    with pytest.raises(UserError, match=rf"things\.zip doesn't have the {kind} in the card.*run it again"):
        fetch(make_card(archive), tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.png"))


def test_an_archive_that_lacks_a_whole_split_is_said(tmp_path: Path, server: Server) -> None:
    splits = {
        "train": {"images": "images/{name}.png", "masks": "masks/{name}.png", "count": 2},
        "val": {"images": "val/{name}.png", "masks": "val-masks/{name}.png", "count": 1},
    }
    with pytest.raises(UserError, match=r"was unpacked to .*split 'val' has 0 images"):
        fetch(make_card(offer(server, zipped(PAIRS)), splits=splits), tmp_path)


def test_what_was_unpacked_is_not_downloaded_twice(tmp_path: Path, server: Server) -> None:
    images = {name: content for name, content in PAIRS.items() if "images" in name}
    first = offer(server, zipped(images), "/first.zip")
    second = offer(server, zipped({n: c for n, c in PAIRS.items() if n not in images}), "/second.zip")
    withheld = server.files.pop("/second.zip")
    with pytest.raises(UserError, match=r"second\.zip: the server answered 404 Not Found"):
        fetch(make_card(first, second), tmp_path)
    server.files["/second.zip"] = withheld
    fetch(make_card(first, second), tmp_path)
    assert len(server.requests) == 3
    assert files_below(tmp_path / "things") == set(PAIRS)


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/things.zip"
        with pytest.raises(UserError, match=f"can't download {url}.*run it again") as said:
            fetch(make_card({"url": url, "md5": "0" * 32}), tmp_path)
    assert "\n" not in str(said.value)


def test_data_that_people_fetch_themselves(tmp_path: Path) -> None:
    card = make_card(fetch_help="register at example.org")
    with pytest.raises(UserError, match=r"has to be fetched by hand: register at example\.org"):
        fetch(card, tmp_path)
    for name in PAIRS:
        (tmp_path / "things" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "things" / name).write_bytes(PNG)
    assert fetch(card, tmp_path) == tmp_path / "things"


def test_a_split_that_was_left_out_is_no_lack_unless_a_fetch_was_cut_short(tmp_path: Path) -> None:
    splits = {
        name: {"images": f"{name}/{{name}}.png", "masks": f"{name}-masks/{{name}}.png", "count": 1}
        for name in ("train", "val")
    }
    for folder in ("train", "train-masks"):
        (tmp_path / "things" / folder).mkdir(parents=True)
        (tmp_path / "things" / folder / "a.png").write_bytes(PNG)
    card = make_card(splits=splits)
    assert missing(card, tmp_path) == []
    lacking = ["split 'val' has 0 images with a mask and needs 1"]
    assert missing(card, tmp_path, every_split=True) == lacking
    (tmp_path / "things" / ".fetch").mkdir()
    assert missing(card, tmp_path) == lacking
    (tmp_path / "things" / ".fetch").rmdir()
    shutil.rmtree(tmp_path / "things" / "train-masks")
    assert missing(card, tmp_path) == ["split 'train' has 0 images with a mask and needs 1"]


def test_the_sample_scenes_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SIZES", {"train": 2, "val": 1, "test": 1})
    card = make_card(generator="scenes", name="scenes", folder="scenes")
    told: list[tuple[str, int, int | None]] = []
    root = fetch(card, tmp_path, lambda *step: told.append(step))
    assert told == [("drawing the sample scenes", n, 4) for n in range(1, 5)]
    (root / "VERSION").write_text("0")
    assert missing(card, tmp_path)
    fetch(card, tmp_path)
    assert missing(card, tmp_path) == []


def link(name: str, kind: bytes, target: str) -> Callable[[], bytes]:
    def build() -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        return file.getvalue()

    return build


def zipped_link() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("images")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/")
    return file.getvalue()


@pytest.mark.parametrize(
    ("build", "member"),
    [
        (lambda: zipped({"../evil.png": PNG}), "../evil.png"),
        (lambda: zipped({"images/../../evil.png": PNG}), "images/../../evil.png"),
        (lambda: zipped({"/evil.png": PNG}), "/evil.png"),
        (lambda: zipped({"..\\evil.png": PNG}), "..\\evil.png"),
        (lambda: zipped({"C:\\evil.png": PNG}), "C:\\evil.png"),
        (lambda: tarred({"../evil.png": PNG}), "../evil.png"),
        (lambda: tarred({"/evil.png": PNG}, "w:gz"), "/evil.png"),
        (link("images", tarfile.SYMTYPE, ".."), "images"),
        (link("images", tarfile.LNKTYPE, "/etc/hostname"), "images"),
        (link("images", tarfile.CHRTYPE, ""), "images"),
        (link("images", tarfile.FIFOTYPE, ""), "images"),
        (link("../images", tarfile.DIRTYPE, ""), "../images"),
        (zipped_link, "images"),
    ],
)
def test_archives_that_reach_outside_are_refused(
    tmp_path: Path, server: Server, build: Callable[[], bytes], member: str
) -> None:
    """Even when the evil member isn't below the one that the card asks for; and nothing is written."""
    (tmp_path / "data").mkdir()
    archive = offer(server, build(), member="elsewhere")
    with pytest.raises(UserError, match=rf"its member '{re.escape(member)}'.*don't trust"):
        fetch(make_card(archive), tmp_path / "data")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or path.name == "images"]


@pytest.mark.parametrize("field", ["into", "member"])
def test_a_card_that_reaches_outside_is_refused(server: Server, field: str) -> None:
    with pytest.raises(ValidationError, match="must lie below the dataset's folder"):
        make_card(offer(server, zipped(PAIRS), **{field: "../../elsewhere"}))


def test_an_archive_too_big_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, folder = tmp_path / "bomb.zip", tmp_path / "into"
    archive.write_bytes(zipped({"zeros.bin": b"\0" * 1000}))
    folder.mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + 999))
    with pytest.raises(UserError, match=r"bomb\.zip unpacks to .* GB free"):
        unpack.unpack(archive, folder)
    assert not list(folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + 1000))
    unpack.unpack(archive, folder)


def test_an_archive_that_holds_more_than_it_declares(tmp_path: Path) -> None:
    """Both places where a zip file states a size say 10, the content has 1000 bytes."""
    content = zipped({"zeros.bin": b"\0" * 1000})
    lying = content.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != content
    (tmp_path / "lying.zip").write_bytes(lying)
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match=r"lying\.zip"):
        unpack.unpack(tmp_path / "lying.zip", tmp_path / "into")
    assert sum(path.stat().st_size for path in (tmp_path / "into").iterdir()) <= 10


def test_a_member_that_is_longer_than_declared_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last guard, should the library that reads the archive give more than was declared."""
    (tmp_path / "long.zip").write_bytes(zipped({"a.bin": b"12345"}))
    (tmp_path / "into").mkdir()
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info: io.BytesIO(b"1234567"))
    with pytest.raises(UserError, match="is bigger than the 5 bytes it declares"):
        unpack.unpack(tmp_path / "long.zip", tmp_path / "into")
    assert (tmp_path / "into" / "a.bin").stat().st_size == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>Sign in to continue</html>", "is neither a zip nor a tar file"),
        (zipped({"a.bin": os.urandom(5000)})[:3000], "is damaged"),
        (tarred({"a.bin": os.urandom(50_000)}, "w:gz")[:30_000], "is damaged"),
        (tarred({"a.bin": os.urandom(50_000)})[:30_000], "is damaged"),
    ],
)
def test_files_that_are_no_archives_or_damaged(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    (tmp_path / "into").mkdir()
    with pytest.raises(UserError, match=said):
        unpack.unpack(tmp_path / "file.zip", tmp_path / "into")


def test_a_folder_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"can't write dataset 'things'.*--data"):
        fetch(make_card(offer(server, zipped(PAIRS))), tmp_path / "file")
