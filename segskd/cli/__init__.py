"""The command line: parses, calls the core, prints. See docs/architecture.md for the contract."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

import tyro

from segskd.cli import (
    data_commands,
    import_commands,
    model_commands,
    plan_commands,
    run_commands,
    study_commands,
    ui_command,
)
from segskd.errors import EndedByFirstProcess, Failed, Stopped, UserError

DESCRIPTION = "Compress segmentation networks by stagewise knowledge distillation."
FLAG_STYLE = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
COLLECTION = (100_000, 20, 100)
"""How many new objects Python's search for garbage waits for (700 by default), and how many searches a larger one."""


def program() -> NoReturn:
    """The program `segskd`: runs the command of its arguments, and ends with its exit status.

    PyTorch and its kin make millions of small objects. Python would look through them for garbage again and again
    while they are imported, and take them apart one by one at the end: four seconds of eight.
    """
    gc.set_threshold(*COLLECTION)
    status = main()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # nobody reads it any more
            pass
        except OSError:  # such as a full disk
            status = status or FAILED
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 2 bad input, 130 stopped, 1 anything else."""
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        _commands().cli(prog="segskd", description=DESCRIPTION, args=_split_options(words), config=FLAG_STYLE)
    except UserError as error:
        print(f"segskd: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"segskd: {stopped or 'stopped'}", file=sys.stderr)
        return STOPPED
    except EndedByFirstProcess:
        return DONE
    except Failed as failed:
        print(f"segskd: {failed}", file=sys.stderr)
        return FAILED
    except Exception as error:
        from segskd.devices import out_of_memory

        if user_error := out_of_memory(error):
            print(f"segskd: {user_error}", file=sys.stderr)
            return BAD_INPUT
        traceback.print_exc()
        return FAILED
    return DONE


def _split_options(words: list[str]) -> list[str]:
    """The words with `--option temperature=2` split into `--option temperature 2`."""
    after_option = [False, *(word == "--option" for word in words)]
    pairs = zip(words, after_option, strict=False)
    return [part for word, option in pairs for part in (word.split("=") if option or _OPTION.match(word) else [word])]


_OPTION = re.compile(r"--option=\w+=")


def _commands() -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    app.command(data_commands.data_app, name="data", help="List, check and download datasets.")
    app.command(name="import")(import_commands.import_network)
    modules = (run_commands, plan_commands, model_commands, study_commands, ui_command)
    for command in (command for module in modules for command in module.COMMANDS):
        app.command(command)
    return app
