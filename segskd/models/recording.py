"""Records what a module does to tensors: the submodules and functions that it calls, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Value(NamedTuple):
    """The number of a tensor that is an input of the recorded module, or the result of one of its calls."""

    number: int


OTHER_MODELS = Value(-1)
"""Stands for a tensor that is neither: a parameter or a buffer of the module."""


@dataclass(frozen=True)
class Call:
    """One call of the submodule at a path, or of a function. Its arguments have values in place of tensors."""

    target: str | Callable[..., Any]
    args: Any
    kwargs: Any
    result: Value

    @property
    def inputs(self) -> set[Value]:
        """The values among the arguments."""
        return set(values_in((self.args, self.kwargs)))


@dataclass
class Recording:
    """The outermost calls that a module made, and the shapes of all values."""

    calls: list[Call] = field(default_factory=list)
    given: Any = None
    result: Any = None
    output: Any = None
    """What the module returned. `result` is the same with values in place of tensors."""
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    overwritten: set[Value] = field(default_factory=set)
    """Values whose tensors a later call has changed in place."""

    def needed(self, wanted: Sequence[Value]) -> set[Value]:
        """All values from which the `wanted` ones are computed, and these themselves."""
        needed = set(wanted)
        for call in reversed(self.calls):
            if call.result in needed:
                needed |= call.inputs
        return needed


def record(module: nn.Module, *given: Any) -> Recording:
    """Calls the module with tensors, or nested sequences of them, and records its calls. Tensors on "meta" cost
    nothing.

    For a submodule that returns something other than one tensor, the calls within it are recorded instead. The module
    is called without gradients.
    """
    opened = {""}
    while True:
        recorder = _Recorder()
        with torch.no_grad(), _hooked(module, recorder, opened), recorder:
            recorder.recording.given = _mapped(given, recorder.new)
            result = module(*given)
        if not recorder.opaque:
            return recorder.finish(result)
        opened |= recorder.opaque


def values_in(content: Any) -> Iterator[Value]:
    """Yields all values in nested sequences and mappings."""
    if isinstance(content, Value):
        yield content
    elif isinstance(content, (tuple, list)):
        for part in content:
            yield from values_in(part)
    elif isinstance(content, Mapping):
        yield from values_in(list(content.values()))


def _mapped(content: Any, change: Callable[[Tensor], Any]) -> Any:
    """Copies nested sequences and mappings, and replaces every tensor by `change(tensor)`."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, (tuple, list)):
        return [_mapped(part, change) for part in content]
    if isinstance(content, Mapping):
        return {key: _mapped(part, change) for key, part in content.items()}
    return content


class _Recorder(TorchFunctionMode):
    """Records the outermost calls: of functions by itself, of submodules by the hooks of `_hooked`."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self.depth = 0
        self.opaque: set[str] = set()
        self._values: dict[int, Value] = {}
        self._versions: dict[Value, tuple[Tensor, int]] = {}  # holds the tensors, too, so that no id is used again

    def new(self, tensor: Tensor) -> Value:
        """A new value for this tensor."""
        value = Value(len(self.recording.shapes))
        self.recording.shapes[value] = tuple(tensor.shape)
        self._values[id(tensor)] = value
        self._versions[value] = (tensor, tensor._version)
        return value

    def note(self, target: str | Callable[..., Any], args: Any, kwargs: Any, result: Tensor) -> None:
        """Records a call."""
        inputs = _mapped(args, self._known), _mapped(kwargs, self._known)
        self.recording.calls.append(Call(target, *inputs, self.new(result)))

    def finish(self, result: Any) -> Recording:
        """The complete recording of a module that returned `result`."""
        self.recording.output, self.recording.result = result, _mapped(result, self._known)
        current = set(self._values.values())
        for value, (tensor, version) in self._versions.items():
            if value in current and tensor._version != version:
                self.recording.overwritten.add(value)
        return self.recording

    def _known(self, tensor: Tensor) -> Value:
        return self._values.get(id(tensor), OTHER_MODELS)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and records the call if it isn't made within a submodule and returns a tensor."""
        result = func(*args, **(kwargs or {}))
        if self.depth == 0 and isinstance(result, Tensor):
            self.note(func, args, kwargs or {}, result)
        return result


@contextmanager
def _hooked(module: nn.Module, recorder: _Recorder, opened: set[str]) -> Iterator[None]:
    """Hooks all submodules except the `opened` ones, so that `recorder` records their calls."""

    def enter(_: nn.Module, args: Any) -> None:
        recorder.depth += 1

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            recorder.depth -= 1
            if recorder.depth == 0 and isinstance(result, Tensor):
                recorder.note(path, args, kwargs, result)
            elif recorder.depth == 0:
                recorder.opaque.add(path)

        return hook

    with ExitStack() as hooks:
        for path, part in module.named_modules():
            if path not in opened:
                hooks.enter_context(part.register_forward_pre_hook(enter))
                hooks.enter_context(part.register_forward_hook(leave(path), with_kwargs=True))
        yield
