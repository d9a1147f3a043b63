"""Images with boxes, as Pascal VOC lays them out: Annotations/*.xml, JPEGImages/*, ImageSets/Main/*.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.arrays import Array
from kdcache.config import SourceConfig
from kdcache.errors import SourceError, UsageError
from kdcache.fingerprint import digest_of, file_digest
from kdcache.sources.annotations import Annotation, read_annotation
from kdcache.sources.pictures import picture_size, read_picture
from kdcache.sources.source import Ids, Rows, positions
from kdcache.sources.voc_sets import annotated, image_of, image_set

__all__ = ["VocSource", "open_voc"]

_MOST_PIXELS = 1 << 26
_MOST_BOXES = 1 << 26  # of all images together; 24 bytes each, in memory at once


class VocSource:
    """Images with their boxes, decoded when they are read; ids number all images of the folder by name.

    `input` uint8 RGB [3, H, W], the whole image scaled to `size` (its proportions may change); `boxes` float32 [M, 4],
    (x1, y1, x2, y2) in pixels of the scaled image; `boxes.class` int64 [M]; rows past the image's boxes are -1.
    Class 0 is the background, as it is to a detector, so that the objects' classes begin at 1.
    With masks `label` int64 [h * w] too, row by row: c where the pixel's centre lies in the ellipse inside a box of
    class c, which is nearer to a cell than the box is, and 0 elsewhere; of several boxes the smallest counts.
    `clipped` and `dropped` count the boxes of the split that reached out of their image, and those that were empty.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[Path],
        ids: Ids,
        boxes: NDArray[np.float32],
        classes: NDArray[np.int64],
        class_names: tuple[str, ...],
        size: tuple[int, int],
        mask_size: tuple[int, int] | None,
    ) -> None:
        self.name = name
        self.class_names = ("background", *class_names)
        self.classes: int | None = len(self.class_names)
        self.arrays = {
            "input": Array("uint8", (3, *size)),
            "boxes": Array("float32", boxes.shape[1:]),
            "boxes.class": Array("int64", classes.shape[1:]),
        }
        if mask_size:
            self.arrays["label"] = Array("int64", (mask_size[0] * mask_size[1],))
        self.clipped = self.dropped = 0
        self._images = images
        self._ids = ids
        self._boxes = boxes
        self._classes = classes
        self._size = size
        self._mask_size = mask_size
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> Ids:
        return self._ids.copy()

    def labels(self) -> Ids | None:
        """None: an image has a class for each of its boxes or pixels, not one of its own."""
        return None

    def read(self, ids: Ids) -> Rows:
        places = positions(self._ids, ids, self.name)
        images = np.empty((len(ids), 3, *self._size), np.uint8)
        for row, place in enumerate(places):
            images[row] = read_picture(self._images[place], self._size)
        rows: Rows = {"input": images, "boxes": self._boxes[places], "boxes.class": self._classes[places]}
        if self._mask_size:
            rows["label"] = np.empty((len(ids), *self.arrays["label"].shape), np.int64)
            for row, place in enumerate(places):
                rows["label"][row] = self._mask(int(place))
        return rows

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = digest_of(
                {
                    "ids": self._ids.tolist(),
                    "images": [file_digest(path) for path in self._images],
                    "boxes": self._boxes.tolist(),
                    "classes": self._classes.tolist(),
                    "names": self.class_names,
                    "size": self._size,
                    "mask": self._mask_size,
                }
            )
        return self._fingerprint

    def _mask(self, place: int) -> NDArray[np.int64]:
        assert self._mask_size
        height, width = self._mask_size
        kept = self._classes[place] >= 0
        boxes = self._boxes[place][kept] * np.tile([width / self._size[1], height / self._size[0]], 2)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        x, y = np.arange(width) + 0.5, (np.arange(height) + 0.5)[:, None]
        mask = np.zeros((height, width), np.int64)
        for box in np.argsort(-areas, kind="stable"):
            x1, y1, x2, y2 = boxes[box]
            across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
            mask[across**2 + down**2 <= 1] = self._classes[place][box]
        return mask.reshape(-1)


def open_voc(
    root: Path, config: SourceConfig, split: str, *, name: str, class_names: tuple[str, ...] = ()
) -> VocSource:
    """The images of a split, with classes numbered from 1 as `class_names` or by name.

    A split is ImageSets/Main/<split>.txt; "trainval" may be "train" and "val" together. Without ImageSets a fifth of
    the images, the same ones always, is "test" and the others are "train". Boxes are clipped to their image, and
    those of which nothing is left are dropped. All annotations of the folder are read, so that every split has the
    same classes and the same M. Raises SourceError, UsageError.
    """
    if config.size is None:
        raise UsageError(f"{name}: [source] needs `size`, a side in pixels or [height, width], to scale the images to")
    if config.mask_size and not config.mask:
        raise UsageError("[source] `mask_size` is for masks; add mask = true")
    size, mask_size = _pair(config.size), _pair(config.mask_size or config.size)
    for key, pair in (("size", size), ("mask_size", mask_size)):
        if pair[0] * pair[1] > _MOST_PIXELS:
            raise UsageError(f"[source] {key} = {list(pair)}: more than the {_MOST_PIXELS} pixels of an image")
    root = root.resolve()
    stems = annotated(root)
    annotations = [read_annotation(root / "Annotations" / f"{stem}.xml") for stem in stems]
    found = sorted({each for one in annotations for each in one.names})
    if strange := [each for each in found if class_names and each not in class_names]:
        raise SourceError(f"{root}: has objects called {strange[:4]}; {name} has {', '.join(class_names)}")
    names = class_names or tuple(found)
    if not names:
        raise SourceError(f"{root / 'Annotations'}: holds no object at all")
    most = max(len(one.boxes) for one in annotations)
    room = config.boxes or most
    if room < most:
        stem = stems[max(range(len(stems)), key=lambda each: len(annotations[each].boxes))]
        raise UsageError(f"[source] boxes = {room}: {stem} has {most}; give at least so many, or leave it out")
    ids = image_set(root, stems, split, name)
    if len(ids) * room > _MOST_BOXES:
        raise UsageError(
            f"[source] boxes = {room}: of {len(ids)} images, more than the {_MOST_BOXES} that fit; {most} are enough"
        )
    images = [image_of(root, stems[place]) for place in ids]
    boxes = np.full((len(ids), room, 4), -1, np.float32)
    classes = np.full((len(ids), room), -1, np.int64)
    clipped = dropped = 0
    for row, place in enumerate(ids):
        inside, kept, reached_out = _scaled(annotations[place], images[row], size)
        count = int(kept.sum())
        boxes[row, :count] = inside[kept]
        classes[row, :count] = np.array([1 + names.index(each) for each in annotations[place].names], np.int64)[kept]
        clipped, dropped = clipped + reached_out, dropped + len(kept) - count
    source = VocSource(name, images, ids, boxes, classes, names, size, mask_size if config.mask else None)
    source.clipped, source.dropped = clipped, dropped
    return source


def _scaled(
    annotation: Annotation, image: Path, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """(boxes [n, 4] inside the image and scaled to `size`, which are not empty [n], how many reached out of it)."""
    height, width = picture_size(image)
    if annotation.size not in (None, (height, width)):
        raise SourceError(
            f"{image}: is {width}×{height} pixels, its annotation says {annotation.size[1]}×{annotation.size[0]}; "
            "its boxes would not fit"
        )
    given = np.array(annotation.boxes, np.float64).reshape(-1, 4)
    limits = np.array([width, height] * 2)
    inside = np.clip(given, 0, limits)
    scaled = (inside * np.array([size[1] / width, size[0] / height] * 2)).astype(np.float32)
    kept = (scaled[:, 2:] > scaled[:, :2]).all(axis=1)
    return scaled, kept, int((inside != given).any(axis=1).sum())


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
