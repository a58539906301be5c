"""Server functions, which scripts of the page call. Whatever a script sends is checked before a function gets it."""

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

    Anything else never reaches the function, and is answered with status UNPROCESSABLE. So is a UserError that the
    function raises. A `TypedDict` names the entries that a function reads; other entries are dropped.
    """
    return [_checked(function) for function in functions]


def _checked(function: Function) -> Function:
    hints = get_type_hints(function)
    hints.pop("return", None)
    (expected,) = hints.values()
    adapter = TypeAdapter(expected)

    @functools.wraps(function)
    def answer(query: Any) -> Any:
        try:
            return function(adapter.validate_python(query, strict=True))
        except ValidationError as error:
            raise HTTPException(UNPROCESSABLE, f"{function.__name__}: {first_problem(error)}") from error
        except UserError as error:
            raise HTTPException(UNPROCESSABLE, in_labels(error)) from error

    return answer
