"""Recognises the layout of a dataset: in which folders and under which names its images and masks lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from segskd.data.cards import Split
from segskd.data.dataset import IMAGE_SUFFIXES
from segskd.data.labels import Labels, find_labels
from segskd.errors import UserError

LayoutKind = Literal["images and masks", "PASCAL VOC", "CVAT segmentation mask", "Cityscapes"]
SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
ACCEPTED = (
    "accepted are images/ and masks/, also per split (train/images, train/masks), PASCAL VOC (JPEGImages/, "
    "SegmentationClass/), CVAT's «Segmentation mask 1.1» (the same with labelmap.txt), and Cityscapes "
    "(leftImg8bit/, gtFine/)"
)

_JUNK = {"__macosx"}
_DEEPEST_WRAPPING = 4
_TRAIN_SHARE = 0.8
_SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_IMAGE_WORDS = ("images", "image", "imgs", "img", "rgb", "photos", "photo", "pictures")
_MASK_WORDS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot", "gt", "groundtruth"),
    *("ground_truth", "segmentations", "segmentation", "seg", "targets", "target"),
)
_SPLIT = rf"(?P<split>{'|'.join(_SPLIT_WORDS)})"
_WORD = rf"(?:(?P<image>{'|'.join(_IMAGE_WORDS)})|(?P<mask>{'|'.join(_MASK_WORDS)}))"
_FOLDER = (re.compile(rf"{_SPLIT}(?:[ ._-]?{_WORD})?"), re.compile(rf"{_WORD}(?:[ ._-]?{_SPLIT})?"))
_IMAGE_ENDING = re.compile(r"[_-](image|img|rgb)$", re.IGNORECASE)
_MASK_ENDING = re.compile(
    r"[_-](masks?|labels?|gt|p|l|seg|segmentation|annotation|groundtruth|ground_truth)$", re.IGNORECASE
)


@dataclass(frozen=True)
class DatasetLayout:
    """How a dataset lies in a folder. The paths of `splits` are relative to `root`.

    `labels` are the classes that a file names, if there is one. `city_ids` says which ids the masks of Cityscapes hold,
    when these are ids of the benchmark's classes.
    """

    kind: LayoutKind
    root: Path
    splits: dict[SplitName, Split]
    labels: Labels | None
    city_ids: Literal["label ids", "train ids"] | None = None


class _PairPatterns(NamedTuple):
    """How many images and masks of two folders form pairs, and the patterns of their paths."""

    pairs: int
    images: str
    masks: str


def recognise(folder: Path) -> DatasetLayout:
    """The layout of the dataset in `folder`.

    As long as the folder holds a single folder and no known layout, that one is looked at, since archives often wrap a
    dataset so. If there is no validation split, it gets a fifth of the training images, drawn by hash. Raises UserError
    that says what was found and what is accepted, when the layout is unknown.
    """
    place, passed = folder, [folder]
    for _ in range(_DEEPEST_WRAPPING):
        layout = _voc(place) or _cityscapes(place) or _images_and_masks(place)
        if layout:
            return _with_labels(layout, passed)
        inside = _folders(place)
        if len(inside) != 1:
            break
        place = inside[0]
        passed.insert(0, place)
    where = "it" if place == folder else f"{place.relative_to(folder)} in it"
    raise UserError(f"no known layout in {folder}: {where} holds {_described(place)}; {ACCEPTED}")


def pictures_below(folder: Path) -> Iterator[Path]:
    """Paths of all pictures below a folder except hidden ones, in no particular order."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            yield path


# -- the layouts --------------------------------------------------------------------------------------


def _voc(root: Path) -> DatasetLayout | None:
    """The layout of PASCAL VOC, in which CVAT exports segmentation masks."""
    named = {path.name.lower(): path for path in _folders(root)}
    masks = next(
        (named[n] for n in ("segmentationclass", "segmentationclasspng") if _holds_pictures(named.get(n))), None
    )
    if masks is None:
        return None
    images = named.get("jpegimages")
    if images is None or not _holds_pictures(images):
        raise UserError(
            f"{masks} has masks, but no folder JPEGImages with images lies beside it: export the images, too"
        )
    fit = _pair_patterns(root, images, masks)
    splits = _listed_splits(root, named.get("imagesets"), fit)
    return DatasetLayout("PASCAL VOC", root, _with_val(splits), None)


def _listed_splits(root: Path, sets: Path | None, fit: _PairPatterns) -> dict[SplitName, Split]:
    """The splits that ImageSets/Segmentation lists. Where it lists none, all files are training images."""
    lists: dict[str, Path] = {}
    for folder in _folders(sets) if sets else []:
        if folder.name.lower() == "segmentation":
            files = sorted(path for path in folder.glob("*.txt") if path.stat().st_size)
            lists = {_SPLIT_WORDS.get(path.stem.lower(), path.stem.lower()): path for path in files}
    if not lists:
        return {"train": Split(images=fit.images, masks=fit.masks)}
    if "train" not in lists:
        rest = [name for name in ("trainval", "default", *lists) if name in lists and name not in SPLITS]
        if not rest:
            raise UserError(f"{sets} lists no training images: add Segmentation/train.txt")
        lists["train"] = lists[rest[0]]
    return {
        name: Split(images=fit.images, masks=fit.masks, names=lists[name].relative_to(root).as_posix())
        for name in SPLITS
        if name in lists
    }


def _cityscapes(root: Path) -> DatasetLayout | None:
    named = {path.name.lower(): path for path in _folders(root)}
    if "leftimg8bit" not in named or "gtfine" not in named:
        return None
    images, masks = named["leftimg8bit"], named["gtfine"]
    for kind, ending in (("label ids", "_gtFine_labelIds"), ("train ids", "_gtFine_labelTrainIds")):
        splits: dict[SplitName, Split] = {}
        for name in SPLITS:
            if (images / name).is_dir() and (masks / name).is_dir():
                fit = _pair_patterns(root, images / name, masks / name, "_leftImg8bit", ending)
                if fit.pairs:
                    splits[name] = Split(images=fit.images, masks=fit.masks)
        if "train" in splits:
            ids: Literal["label ids", "train ids"] = "label ids" if kind == "label ids" else "train ids"
            return DatasetLayout("Cityscapes", root, _with_val(splits), None, ids)
    raise UserError(
        f"{root} has leftImg8bit and gtFine, but no train/CITY/NAME_leftImg8bit.png with its "
        "NAME_gtFine_labelIds.png: unpack both archives into one folder"
    )


def _images_and_masks(root: Path) -> DatasetLayout | None:
    """A layout of folders whose names say images or masks, and perhaps a split, in any order, one or two levels
    deep."""
    folders: dict[tuple[SplitName | None, str], list[Path]] = {}
    for path, split, role in _roles(root):
        folders.setdefault((split, role), []).append(path)
    fits: dict[SplitName | None, _PairPatterns] = {}
    for split in (*SPLITS, None):
        masks = folders.get((split, "mask"), [])
        # CamVid calls the folders train and trainannot.
        plain = [path for path in folders.get((split, ""), []) if not any(path in mask.parents for mask in masks)]
        images = [*folders.get((split, "image"), []), *plain]
        tried = [_pair_patterns(root, image, mask) for image in images for mask in masks]
        best = max(tried, key=lambda fit: fit.pairs, default=None)
        if best is not None and best.pairs:
            fits[split] = best
    by_name = {name: fits[name] for name in SPLITS if name in fits}
    if "train" not in by_name:
        by_name = {"train": fits[None]} if None in fits else {}
    if not by_name:
        return None
    splits = {name: Split(images=fit.images, masks=fit.masks) for name, fit in by_name.items()}
    return DatasetLayout("images and masks", root, _with_val(splits), None)


def _roles(root: Path) -> Iterator[tuple[Path, SplitName | None, str]]:
    """Folders that hold pictures, with the split (or None) and the role ("image", "mask" or "") that their names
    say."""
    for outer in _folders(root):
        meaning = _name_meaning(outer.name)
        if meaning is None or not _holds_pictures(outer):
            continue
        yield outer, *meaning
        for inner in _folders(outer):
            own = _name_meaning(inner.name)
            if own and not (meaning[0] and own[0]) and not (meaning[1] and own[1]) and _holds_pictures(inner):
                yield inner, meaning[0] or own[0], meaning[1] or own[1]


def _name_meaning(name: str) -> tuple[SplitName | None, str] | None:
    """The split and the role that a folder's name says, None for a name that says neither."""
    match = _FOLDER[0].fullmatch(name.lower()) or _FOLDER[1].fullmatch(name.lower())
    if match is None:
        return None
    role = "image" if match["image"] else "mask" if match["mask"] else ""
    return _SPLIT_WORDS.get(match["split"] or ""), role


def _with_labels(layout: DatasetLayout, folders: list[Path]) -> DatasetLayout:
    """Adds the classes that a file in one of `folders` names: the dataset's own folder and those that wrap it."""
    labels = find_labels(folders)
    if labels is not None and layout.kind == "PASCAL VOC" and Path(labels.source).name.lower() == "labelmap.txt":
        return replace(layout, labels=labels, kind="CVAT segmentation mask")
    if labels is not None and labels.colours is not None:
        return replace(layout, labels=labels, city_ids=None)
    if layout.city_ids:
        # The benchmark's own test masks are empty.
        with_masks: dict[SplitName, Split] = {name: split for name, split in layout.splits.items() if name != "test"}
        return replace(layout, labels=labels, splits=with_masks)
    return replace(layout, labels=labels)


def _with_val(splits: dict[SplitName, Split]) -> dict[SplitName, Split]:
    if "val" in splits:
        return splits
    train = splits["train"]
    parts: dict[SplitName, Split] = {
        "train": train.model_copy(update={"share": (0.0, _TRAIN_SHARE)}),
        "val": train.model_copy(update={"share": (_TRAIN_SHARE, 1.0)}),
    }
    return {**splits, **parts}


# -- files --------------------------------------------------------------------------------------------


def _pair_patterns(
    root: Path, images: Path, masks: Path, image_ending: str | None = None, mask_ending: str | None = None
) -> _PairPatterns:
    """The patterns, made with the given endings or those that occur, by which the most files form pairs."""
    image_files, mask_files = _stems(images), _stems(masks)
    image_endings = _endings(image_files, _IMAGE_ENDING) if image_ending is None else [image_ending]
    mask_endings = _endings(mask_files, _MASK_ENDING) if mask_ending is None else [mask_ending]
    fits = []
    for one in image_endings:
        names = {stem.removesuffix(one): suffix for stem, suffix in image_files.items() if stem.endswith(one)}
        for other in mask_endings:
            partners = {stem.removesuffix(other): suffix for stem, suffix in mask_files.items() if stem.endswith(other)}
            both = names.keys() & partners.keys()
            fits.append(
                _PairPatterns(
                    len(both),
                    f"{images.relative_to(root).as_posix()}/{{name}}{one}{_suffix(names.values())}",
                    f"{masks.relative_to(root).as_posix()}/{{name}}{other}{_suffix(partners.values())}",
                )
            )
    return max(fits, key=lambda fit: fit.pairs)


def _stems(folder: Path) -> dict[str, str]:
    """Pictures below a folder: their paths without suffix, and their suffixes (".*" where a path has several)."""
    suffixes: dict[str, str] = {}
    for path in pictures_below(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        suffixes[stem] = ".*" if stem in suffixes else path.suffix
    return suffixes


def _endings(stems: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    matches = (pattern.search(stem) for stem in stems)
    return ["", *Counter(match[0] for match in matches if match)]


def _suffix(suffixes: Iterable[str]) -> str:
    kinds = set(suffixes)
    return kinds.pop() if len(kinds) == 1 else ".*"


def _folders(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in inside if not path.name.startswith(".") and path.name.lower() not in _JUNK)


def _holds_pictures(folder: Path | None) -> bool:
    return folder is not None and any(True for _ in pictures_below(folder))


def _described(folder: Path) -> str:
    """Describes the content of a folder, for a message."""
    names = [path.name for path in _folders(folder)]
    files = sum(1 for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    folders = f"the folders {shown}" if names else "no folders"
    return f"{folders} and {files} files"
