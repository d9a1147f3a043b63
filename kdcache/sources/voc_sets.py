"""Which images a Pascal VOC folder has, and which of them a split takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdcache.errors import SourceError, UsageError
from kdcache.sources.pictures import SUFFIXES, check_inside
from kdcache.sources.source import Ids
from kdcache.sources.subset import choose

__all__ = ["annotated", "image_of", "image_set"]


def annotated(root: Path) -> list[str]:
    """The sorted stems of Annotations/*.xml; SourceError where there are none, TrustError for a link that leads out."""
    found = [path for path in (root / "Annotations").glob("*.xml") if not path.name.startswith(".")]
    for path in (root / "Annotations", root / "JPEGImages", *found):
        check_inside(root, path)
    stems = sorted(path.stem for path in found)
    if not stems:
        raise SourceError(f"{root / 'Annotations'}: holds no .xml; `path` is a folder with Annotations and JPEGImages")
    return stems


def image_of(root: Path, stem: str) -> Path:
    """The image in JPEGImages of this stem, whatever its kind; SourceError."""
    folder = root / "JPEGImages"
    for suffix in sorted(SUFFIXES, key=lambda each: each != ".jpg"):
        for path in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}"):
            if path.is_file():
                check_inside(root, path)
                return path
    raise SourceError(f"{folder / stem}: no image of this name ({', '.join(sorted(SUFFIXES))}), but an annotation")


def image_set(root: Path, stems: Sequence[str], split: str, name: str) -> Ids:
    """The places among `stems` of a split's images, int64 ascending.

    A split is ImageSets/Main/<split>.txt, "trainval" also "train" and "val" together; without ImageSets/Main a fifth
    of the images is "test", chosen for good, and the rest "train". Raises SourceError, UsageError.
    """
    folder = root / "ImageSets" / "Main"
    if not folder.is_dir():
        if split not in ("train", "test"):
            raise UsageError(f"{name}: has no split {split!r}; without {folder} it has train and test")
        places = np.arange(len(stems), dtype=np.int64)
        test = choose(places, len(places) // 5, "voc", 0)
        return test if split == "test" else np.setdiff1d(places, test)
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if split == "trainval" and split not in lists and {"train", "val"} <= lists.keys():
        asked = _names(lists["train"]) + _names(lists["val"])
    elif split in lists:
        asked = _names(lists[split])
    else:
        raise UsageError(f"{name}: has no split {split!r}; {folder} has {', '.join(lists) or 'none'}")
    known = {stem: place for place, stem in enumerate(stems)}
    if strange := [stem for stem in asked if stem not in known]:
        raise SourceError(f"{folder}: {split} names {strange[0][:60]!r}, of which there is no annotation")
    if not asked or len(set(asked)) < len(asked):
        raise SourceError(f"{folder}: {split} names {len(asked)} images, {len(set(asked))} different ones")
    return np.array(sorted(known[stem] for stem in asked), np.int64)


def _names(path: Path) -> list[str]:
    """The first word of every line; VOC's own lists may have a second, which says whether a class is there."""
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a list of names ({error})") from error
