"""The feature store: features of frozen stages, kept for every sample so that no frozen stage runs twice."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from segskd.config import Size
from segskd.data.samples import Samples
from segskd.distill.caching.inputs import DATA, IMAGE_KEY, MASK_KEY, Key, Keys, feature_key, read_of
from segskd.distill.caching.rows import AsTheyCome, InEightBits, Kept, Parts, in_memory, on_disk
from segskd.models.stages import StagedNetwork

Kind = Literal["memory", "disk", "recompute"]
Values = Mapping[Key, Tensor]
Read = TypeVar("Read")


class Batch:
    """Tensors of some samples by key. No collection, so that Fabric hands it on as it is."""

    def __init__(self, tensors: Values) -> None:
        self.tensors = dict(tensors)
        self.counted: float | None = None
        """What a sum over pixels with labels is divided by, where it is not their own number."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def features(self, owner: str) -> dict[str, Tensor]:
        """One network's features by stage name, with the image as "image"."""
        return {key.name: value for key, value in self.tensors.items() if key.owner == owner or key == IMAGE_KEY}

    @property
    def mask(self) -> Tensor:
        return self.tensors[MASK_KEY]


@dataclass(frozen=True)
class Networks:
    """The networks by the owner of their features: in eval mode, without gradients, in one precision."""

    by_owner: Mapping[str, StagedNetwork]
    size: Size
    device: torch.device
    dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager[object]]

    def compute(self, known: Values, wanted: Keys) -> dict[Key, Tensor]:
        """The wanted tensors, running only those stages that lie between them and what is known."""
        values = dict(known)
        with torch.no_grad(), self.autocast():
            for key in sorted(wanted):
                self._reach(key, values)
        return {key: values[key] for key in wanted}

    def _reach(self, key: Key, values: dict[Key, Tensor]) -> Tensor:
        if key in values:
            return values[key]
        assert key.owner != DATA
        network = self.by_owner[key.owner]
        names = network.sources(network.index(key.name))
        sources = {name: self._reach(feature_key(key.owner, name), values) for name in names}
        for name, feature in network.stages[key.name].features(sources, self.size).items():
            values.setdefault(Key(key.owner, name), feature)
        return values[key]


class FeatureStore:
    """What one set of samples holds from phase to phase."""

    def __init__(
        self,
        samples: Samples,
        networks: Networks,
        kind: Kind,
        folder: Path,
        chunk: int,
        bits: int | None = None,
    ) -> None:
        """Fills itself in parts of `chunk` samples; keeps features in 8 `bits` a value, by default as they come."""
        self.samples = samples
        self.kind = kind
        self.reads_ahead = True
        self._networks = networks
        self._folder = folder
        self._chunk = chunk
        self._bits = bits
        self._wanted: Keys = frozenset()
        self._kept: dict[Key, Kept] = {}

    def advance(self, wanted: Keys, progress: Callable[[int, int], None] | None = None) -> None:
        """Holds `wanted` from now on: what is missing is computed once for every sample, the rest is let go.

        The student's stages before the wanted features must have their final weights.
        """
        self._wanted = wanted
        if self.kind == "recompute":
            return
        missing = wanted - self._kept.keys()
        if missing:
            self._fill(frozenset(missing), progress)
        for key in self._kept.keys() - wanted:
            del self._kept[key]
            self._file(key).unlink(missing_ok=True)

    def batch(self, numbers: Tensor, keys: Keys | None = None) -> Batch:
        """What is held of the samples with these numbers, int64 (N,), on the networks' device; of it `keys` alone."""
        wanted = self._wanted if keys is None else keys
        return self._made(self._read(numbers, wanted), wanted)

    def stream(self, numbers: Iterable[Tensor], keys: Keys | None = None) -> Iterator[Batch]:
        """A batch for each of `numbers`; see `batch`. The next one is read while this one is worked on."""
        wanted = self._wanted if keys is None else keys
        at_hand = self.kind == "memory" and self._networks.device.type == "cpu"
        for _, rows in self._read_ahead(numbers, lambda part: self._read(part, wanted), not at_hand):
            yield self._made(rows, wanted)

    def _read(self, numbers: Tensor, wanted: Keys) -> Mapping[Key, Parts]:
        """From memory, disk or the images' files, what the samples' wanted tensors are made of."""
        if self.kind == "recompute":
            return {key: (value,) for key, value in self._load(numbers.tolist()).items()}
        return {key: self._parts(key, numbers) for key in sorted(wanted)}

    def _made(self, read: Mapping[Key, Parts], wanted: Keys) -> Batch:
        if self.kind == "recompute":
            return Batch(self._networks.compute({key: value for key, (value,) in read.items()}, wanted))
        return Batch({key: self._handed_out(key, parts) for key, parts in read.items()})

    def batches(self, keys: Keys | None = None) -> Iterator[Batch]:
        """All samples in order; see `batch`."""
        for start in range(0, len(self.samples), self._chunk):
            yield self.batch(torch.arange(start, min(start + self._chunk, len(self.samples))), keys)

    @property
    def bytes(self) -> int:
        """What the held tensors occupy."""
        return sum(kept.bytes for kept in self._kept.values())

    def close(self) -> None:
        """Lets everything go."""
        self.advance(frozenset())
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fill(self, missing: Keys, progress: Callable[[int, int], None] | None) -> None:
        """Computes `missing` chunk by chunk: always the same chunks, so that a resumed run gets the same bits."""
        fresh: dict[Key, Kept] = {}
        done = 0
        at_hand = frozenset(self._kept) | {IMAGE_KEY, MASK_KEY}
        given = read_of(at_hand, missing, self._networks.by_owner) & self._kept.keys()
        for numbers, loaded in self._chunks(missing):
            known = {key: self._handed_out(key, self._parts(key, numbers)) for key in sorted(given)}
            for key, value in self._networks.compute(known | loaded, missing).items():
                rows = _channels_behind(value)
                if key not in fresh:
                    fresh[key] = self._room(key, (len(self.samples), *rows.shape[1:]), rows.dtype)
                fresh[key].write(numbers, rows)
            done += len(numbers)
            if progress:
                progress(done, len(self.samples))
        self._kept |= fresh

    def _chunks(self, missing: Keys) -> Iterator[tuple[Tensor, dict[Key, Tensor]]]:
        """Numbers of samples with what has to be loaded of them, all views of an image together."""
        chunks = self.samples.image_by_image(self._chunk)
        if not self._reads_files(missing):
            return ((numbers, {}) for numbers in chunks)
        return self._read_ahead(chunks, lambda numbers: self._load(numbers.tolist()), True)

    def _read_ahead(
        self, parts: Iterable[Tensor], read: Callable[[Tensor], Read], worthwhile: bool
    ) -> Iterator[tuple[Tensor, Read]]:
        """Each part with what is read of it: where `reads_ahead` and `worthwhile`, while the one before is in use."""
        if not self.reads_ahead or not worthwhile:
            yield from ((numbers, read(numbers)) for numbers in parts)
            return
        with ThreadPoolExecutor(1) as reader:
            coming: deque[tuple[Tensor, Future[Read]]] = deque()
            for numbers in parts:
                coming.append((numbers, reader.submit(read, numbers)))
                if len(coming) > 1:
                    now, found = coming.popleft()
                    yield now, found.result()
            yield from ((now, found.result()) for now, found in coming)

    def _reads_files(self, missing: Keys) -> bool:
        return not self._kept or any(key.owner == "data" for key in missing)

    def _load(self, numbers: Sequence[int]) -> dict[Key, Tensor]:
        images, masks = self.samples.load(numbers)
        device = self._networks.device
        pixels = images.to(device, self._networks.dtype).to(memory_format=torch.channels_last)
        return {IMAGE_KEY: pixels, MASK_KEY: masks.to(device)}

    def _parts(self, key: Key, numbers: Tensor) -> Parts:
        """What is kept of these samples; on the way to a GPU in memory from which it can be copied meanwhile."""

        def take(kept: Tensor) -> Tensor:
            if self._networks.device.type != "cuda":
                return kept.index_select(0, numbers)
            rows = torch.empty((len(numbers), *kept.shape[1:]), dtype=kept.dtype, pin_memory=True)
            return torch.index_select(kept, 0, numbers, out=rows)

        return self._kept[key].read(take)

    def _handed_out(self, key: Key, parts: Parts) -> Tensor:
        """Rows on the device, (N, c, h, w) in channels-last memory without a copy."""
        moved = tuple(part.to(self._networks.device, non_blocking=True) for part in parts)
        rows = self._kept[key].opened(moved)
        return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows

    def _room(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> Kept:
        room = in_memory if self.kind == "memory" else partial(on_disk, self._file(key))
        return (InEightBits if self._bits and key.owner != DATA else AsTheyCome)(room, shape, dtype)

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key.owner}-{key.name}.bin"


def _channels_behind(value: Tensor) -> Tensor:
    """(N, c, h, w) as (N, h, w, c), the order in which channels-last memory lies."""
    return value.permute(0, 2, 3, 1) if value.dim() == 4 else value
