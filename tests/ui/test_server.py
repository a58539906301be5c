"""Starting the server: who is let in, where it listens, and what it says when that can't be."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.exceptions import HTTPException

from segskd.cli import main
from segskd.cli.ui_command import PageFlags
from segskd.errors import UserError
from ui import server
from ui.server import choose_port, is_fault, read_auth, serve

LOCAL = "127.0.0.1"


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def auth(tmp_path: Path) -> Path:
    return tmp_path / "auth"


# -- who is let in ------------------------------------------------------------------------------------


def test_names_and_passwords(auth: Path) -> None:
    auth.write_text("# who may look\nann:secret\n\n  bob:with:colons and spaces  \n", encoding="utf-8-sig")
    assert read_auth(auth) == [("ann", "secret"), ("bob", "with:colons and spaces")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no names: write a line NAME:PASSWORD"),
        ("# ann:secret\n", "has no names"),
        ("ann:a\nbob\n", "line 2: write NAME:PASSWORD"),
        (":a\n", "line 1: write NAME:PASSWORD"),
        ("ann:\n", "line 1: write NAME:PASSWORD"),
        ("ann:a\nbob:b\nann:c\n", "line 3: ann has a password already"),
    ],
)
def test_a_file_that_is_no_list_of_names(auth: Path, text: str, problem: str) -> None:
    auth.write_text(text)
    with pytest.raises(UserError, match=problem):
        read_auth(auth)


def test_a_password_is_never_told(auth: Path) -> None:
    auth.write_text("ann:first\nann:second\n")
    with pytest.raises(UserError) as caught:
        read_auth(auth)
    assert "first" not in str(caught.value)
    assert "second" not in str(caught.value)


def test_a_file_that_can_not_be_read(auth: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*: No such file or directory"):
        read_auth(auth)
    with pytest.raises(UserError, match=r"can't read .*: Is a directory"):
        read_auth(tmp_path)
    auth.write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"can't read .*: it is not text"):
        read_auth(auth)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.2"])
def test_another_host_needs_names(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "choose_port", lambda *_: pytest.fail("it would have listened"))
    with pytest.raises(UserError, match="lets other machines in: name who may come in, with --auth FILE"):
        serve(PageFlags(host=host))


# -- where it listens ---------------------------------------------------------------------------------


def test_a_busy_port_that_was_asked_for_is_named(busy: int) -> None:
    with pytest.raises(UserError, match=f"--port {busy} on 127.0.0.1 can't be taken: Address already in use"):
        choose_port(LOCAL, busy)


def test_a_free_port_that_was_asked_for_is_taken() -> None:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        free = probe.getsockname()[1]
    assert choose_port(LOCAL, free) == free


def test_the_next_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def bind(_: str, port: int) -> None:
        tried.append(port)
        if port < 7863:
            raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(server, "_bind", bind)
    assert choose_port(LOCAL, None) == 7863
    assert tried == [7860, 7861, 7862, 7863]


def test_all_ports_busy(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PORT", busy)
    monkeypatch.setattr(server, "TRIED_PORTS", 1)
    with pytest.raises(UserError, match=f"no free port between {busy} and {busy}: name one with --port"):
        choose_port(LOCAL, None)


@pytest.mark.parametrize("port", [0, -1, 65536, 10**6])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(UserError, match=f"--port {port}: name one between 1 and 65535"):
        choose_port(LOCAL, port)


def test_a_host_that_is_not_this_machine() -> None:
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 is not an address of this machine"):
        choose_port("192.0.2.1", None)


def test_ipv6_stands_in_brackets_in_an_address() -> None:
    assert [server._in_address(host) for host in ("::1", LOCAL, "localhost")] == ["[::1]", LOCAL, "localhost"]


# -- what it is started with --------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose administrator set a proxy."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    for name in ("NO_PROXY", "no_proxy", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def proxies(url: str) -> bool:
    """Whether httpx, with which Gradio looks whether it has started, would ask a proxy."""
    client = httpx.Client()
    return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "192.168.1.5"])
def test_no_proxy_stands_between_the_server_and_itself(proxied: pytest.MonkeyPatch, host: str) -> None:
    assert proxies(f"http://{host}:7860/")
    server._prepare_environment("192.168.1.5")
    assert not proxies(f"http://{host}:7860/")
    assert proxies("http://example.org/")


def test_what_was_exempted_before_stays_so(proxied: pytest.MonkeyPatch) -> None:
    proxied.setenv("NO_PROXY", "intra.example,localhost")
    server._prepare_environment(LOCAL)
    assert os.environ["NO_PROXY"] == "intra.example,localhost,127.0.0.1,::1"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.parametrize("option", ["runs", "data"])
def test_a_folder_that_is_a_file(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"--{option} .*file is not a folder: name another one"):
        serve(PageFlags(**{option: tmp_path / "file"}))  # type: ignore[arg-type]


def test_what_can_not_be_is_one_line_and_status_2(busy: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--port", str(busy)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"segskd: --port {busy} on 127.0.0.1 can't be taken: Address already in use; name another one\n"


@pytest.mark.parametrize(
    ("error", "cause", "told"),
    [
        (RuntimeError("Caught handled exception, but response already started."), HTTPException(404), False),
        (RuntimeError("Caught handled exception, but response already started."), HTTPException(500), True),
        (RuntimeError("Caught handled exception, but response already started."), None, True),
        (ValueError("anything else"), HTTPException(404), True),
    ],
)
def test_a_page_that_was_closed_is_no_fault(error: Exception, cause: Exception | None, told: bool) -> None:
    error.__cause__ = cause
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "", None, (type(error), error, None))
    assert is_fault(record) is told
