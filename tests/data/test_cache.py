"""Kept figures: read back as they were, found anew when a byte of them is wrong, found once by two who ask."""

from __future__ import annotations

import threading
from pathlib import Path

import filelock
import numpy as np
import pytest

from segskd.data.cache import Arrays, cache_folder, cached
from segskd.errors import UserError

FIGURES = {"counts": np.array([[1, 2], [3, 4]]), "entropy": np.array([0.5], dtype=np.float32)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    return path


def same(found: Arrays) -> bool:
    return found.keys() == FIGURES.keys() and all(
        found[name].dtype == own.dtype and found[name].tolist() == own.tolist() for name, own in FIGURES.items()
    )


def test_the_folder_lies_among_the_runs(tmp_path: Path) -> None:
    assert cache_folder(tmp_path) == tmp_path / ".cache"


def test_no_damage_gives_wrong_figures(file: Path, tmp_path: Path) -> None:
    found = []

    def find() -> Arrays:
        found.append(1)
        return FIGURES

    def ask() -> Arrays:
        return cached(tmp_path / "kept", "test", ["about"], [file], find)

    assert same(ask())
    assert same(ask())
    assert len(found) == 1
    (place,) = (tmp_path / "kept").glob("test-*.npz")
    whole = place.read_bytes()
    anew = 0
    steps = range(0, len(whole), 13)
    for at in steps:
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            place.write_bytes(damaged)
            before = len(found)
            assert same(ask()), at
            if len(damaged) < len(whole):
                assert len(found) == before + 1
                assert place.read_bytes() == whole
            anew += len(found) - before
    assert anew > len(steps)  # every file that was cut short, and most of those with a wrong byte


def test_about_and_files_are_told_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"one")
    questions = [(["a", "b"], [file]), (["ab"], [file]), (["a", "b"], [other]), (["a", "b"], [file, other])]
    answers = iter([np.array(number) for number in range(len(questions))])
    for _ in range(2):
        for number, (about, files) in enumerate(questions):
            assert cached(tmp_path, "test", about, files, lambda: {"n": next(answers)})["n"] == number


def test_two_who_ask_at_once_find_out_once(file: Path, tmp_path: Path) -> None:
    begun, go_on, found, answers = threading.Event(), threading.Event(), [], []

    def find() -> Arrays:
        found.append(1)
        begun.set()
        assert go_on.wait(300)
        return FIGURES

    def ask() -> None:
        answers.append(cached(tmp_path / "kept", "test", [], [file], find))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert begun.wait(300)
    second.start()
    go_on.set()
    first.join(300)
    second.join(300)
    assert len(found) == 1
    assert [same(answer) for answer in answers] == [True, True]


def test_what_is_kept_is_read_without_waiting(file: Path, tmp_path: Path) -> None:
    cached(tmp_path / "kept", "test", [], [file], lambda: FIGURES)
    (lock,) = (tmp_path / "kept").glob("*.lock")
    with filelock.FileLock(lock):
        asking = threading.Thread(target=cached, args=(tmp_path / "kept", "test", [], [file], dict), daemon=True)
        asking.start()
        asking.join(300)
        assert not asking.is_alive()


def test_a_failure_keeps_nothing_and_locks_nobody_out(file: Path, tmp_path: Path) -> None:
    def fail() -> Arrays:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cached(tmp_path / "kept", "test", [], [file], fail)
    assert same(cached(tmp_path / "kept", "test", [], [file], lambda: FIGURES))


def test_what_a_user_can_mend(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't write .*file/"):
        cached(file / "kept", "test", [], [file], lambda: FIGURES)
    file.unlink()
    with pytest.raises(UserError, match=r"can't read .*file: No such file"):
        cached(tmp_path / "kept", "test", [], [file], lambda: FIGURES)
