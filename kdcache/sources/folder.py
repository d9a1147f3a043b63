"""A folder of images, one subfolder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcache.arrays import Array
from kdcache.errors import SourceError
from kdcache.fingerprint import digest_of, file_digest
from kdcache.sources.pictures import SUFFIXES, check_inside, read_picture
from kdcache.sources.source import LABEL, Ids, Rows, positions

__all__ = ["FolderSource", "open_folder"]


class FolderSource:
    """Images as uint8 RGB [3, size, size], decoded when they are read; ids follow the sorted names.

    With `size`, the largest centred square is scaled to it (bilinear, antialiased), which is what
    resizing the shorter side and cropping the centre gives. Without, all images must be of one size.
    """

    def __init__(
        self, name: str, root: Path, files: tuple[str, ...], labels: Ids, class_names: tuple[str, ...], size: int | None
    ) -> None:
        self.name = name
        self.class_names = class_names
        self.classes: int | None = len(class_names)
        self._root = root
        self._files = files
        self._labels = labels
        self._size = size
        self._fingerprint: str | None = None
        shape = (3, size, size) if size else read_picture(root / files[0], None).shape
        self.arrays = {"input": Array("uint8", shape), "label": LABEL}

    def __len__(self) -> int:
        return len(self._files)

    def ids(self) -> Ids:
        return np.arange(len(self), dtype=np.int64)

    def labels(self) -> Ids:
        return self._labels

    def read(self, ids: Ids) -> Rows:
        positions(self.ids(), ids, self.name)
        shape = self.arrays["input"].shape
        images = np.empty((len(ids), *shape), np.uint8)
        for row, file in enumerate(ids):
            image = read_picture(self._root / self._files[file], self._size)
            if image.shape != shape:
                raise SourceError(
                    f"{self._root / self._files[file]}: {image.shape[2]}×{image.shape[1]} pixels, but "
                    f"{self._files[0]} has {shape[2]}×{shape[1]}; give `size` to bring them to one size"
                )
            images[row] = image
        return {"input": images, "label": self._labels[ids]}

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            files = {name: file_digest(self._root / name) for name in self._files}
            self._fingerprint = digest_of({"files": files, "classes": self.class_names, "size": self._size})
        return self._fingerprint


def open_folder(path: Path, size: int | None, *, name: str) -> FolderSource:
    """The images of a folder's subfolders; hidden files, and files that are no images, are passed over."""
    try:
        root = path.resolve(strict=True)
        classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        names, labels = [], []
        for label, class_name in enumerate(classes):
            found = _images(root, class_name)
            if not found:
                raise SourceError(
                    f"{root / class_name}: holds no images ({', '.join(sorted(SUFFIXES))}); "
                    "each subfolder is a class and needs at least one"
                )
            names += found
            labels += [label] * len(found)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if not names:
        raise SourceError(f"{path}: has no subfolders; expected one per class with its images inside")
    return FolderSource(name, root, tuple(names), np.array(labels, np.int64), tuple(classes), size)


def _images(root: Path, class_name: str) -> list[str]:
    """The sorted relative names of the images below a class's folder; TrustError for a link that leads out."""
    check_inside(root, root / class_name)
    found = []
    for folder, folders, files in os.walk(root / class_name):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in (Path(folder, each) for each in files):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                check_inside(root, file)
                found.append(file.relative_to(root).as_posix())
    return sorted(found)
