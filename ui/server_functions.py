"""Server functions: what a script asks for is checked before the function sees it, whoever sent it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_type_hints

from fastapi import HTTPException
from pydantic import TypeAdapter, ValidationError

from segskd.config import first_problem
from segskd.errors import UserError, in_labels

UNPROCESSABLE = 422

Function = Callable[[Any], Any]


def checked_functions(*functions: Function) -> list[Function]:
    """The functions as `server_functions` of a component: each takes one object, as its annotation says.

    Anything else is answered with status MISFIT and never reaches the function, and so is a UserError that the
    function raises. A `TypedDict` names the entries that a function reads; others are dropped.
    """
    return [_checked(function) for function in functions]


def _checked(function: Function) -> Function:
    hints = get_type_hints(function)
    hints.pop("return", None)
    (wanted,) = hints.values()
    adapter = TypeAdapter(wanted)

    @functools.wraps(function)
    def answer(asked: Any) -> Any:
        try:
            return function(adapter.validate_python(asked, strict=True))
        except ValidationError as error:
            raise HTTPException(UNPROCESSABLE, f"{function.__name__}: {first_problem(error)}") from error
        except UserError as error:
            raise HTTPException(UNPROCESSABLE, in_labels(error)) from error

    return answer
