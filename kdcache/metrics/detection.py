"""Mean average precision of a dense detector, by the evaluator of COCO."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdcache.errors import MissingExtra, UsageError
from kdcache.metrics.boxes import Boxes, decode, grid_stride, kept_boxes
from kdcache.metrics.judged import Judged

__all__ = ["average_precision", "map50"]

_IMAGES = 32  # at once: candidates * candidates overlaps of each
_DETECTIONS = 100  # an image, as COCO counts them


def map50(
    judged: Judged, *, stride: int | None = None, iou: float = 0.6, score: float = 0.01, candidates: int = 300
) -> dict[str, float]:
    """{"map50", "map50_95"}, 0 to 1: the mean over classes of the average precision at an overlap of 0.5, and its mean
    over overlaps of 0.5, 0.55, ... 0.95 (Lin et al. 2014; computed by pycocotools, the extra `detection`).

    Outputs "logits" [N, P, C + 1], background at 0, and "boxes" [N, P, 4]: a dense detector (`kdcache.metrics.boxes`).
    Fields `boxes` float32 [N, M, 4], corners x1 y1 x2 y2 in pixels, and `boxes.class` int64 [N, M] from 1, -1 for
    padding; the size of the images is that of `input` [N, ..., H, W]. The `candidates` best pairs of position and class
    of an image are decoded, doubles that overlap by more than `iou` and those below `score` are left out, and of what
    is left the best 100 count.
    """
    logits, sides = judged.output().detach(), judged.output("boxes").detach()
    true, classes = judged.row("boxes"), judged.row("boxes.class")
    if logits.ndim != 3 or sides.shape != (*logits.shape[:2], 4):
        raise UsageError(
            f'map50: logits are {list(logits.shape)} and the output "boxes" {list(sides.shape)}; a dense detector '
            "gives [N, P, C + 1] and [N, P, 4]"
        )
    if true.shape != (*classes.shape, 4) or classes.ndim != 2 or len(true) != len(logits):
        raise UsageError(
            f"map50: of {len(logits)} images the fields boxes are {list(true.shape)} and boxes.class "
            f"{list(classes.shape)}; [N, M, 4] and [N, M] are needed"
        )
    if bool(((classes == 0) | (classes >= logits.shape[2])).any()):
        raise UsageError(
            f"map50: boxes.class has {sorted(set(classes.flatten().tolist()))}, and the network's {logits.shape[2]} "
            f"outputs, of which 0 is the background, take 1 to {logits.shape[2] - 1}, or -1 for no box"
        )
    if candidates < 1:
        raise UsageError(f"map50: candidates = {candidates}: at least 1")
    height, width = judged.row("input").shape[-2:]
    step = grid_stride(logits.shape[1], height, width, stride)
    found = []
    for first in range(0, len(logits), _IMAGES):
        part = slice(first, first + _IMAGES)
        boxes = decode(logits[part], sides[part], (height, width), step, candidates)
        found.append(_table(boxes, kept_boxes(boxes, iou, score), first))
    rates = average_precision(np.concatenate(found), true, classes, (height, width))
    return {"map50": rates[0], "map50_95": rates[1]}


def average_precision(
    found: NDArray[np.float64], boxes: Tensor, classes: Tensor, size: tuple[int, int]
) -> tuple[float, float]:
    """(at an overlap of 0.5, mean over 0.5 to 0.95) of COCO, as shares.

    found float64 [D, 7]: image, x1, y1, width, height, score, class of each detection. boxes [N, M, 4] corners,
    classes int64 [N, M] from 1, -1 for padding. UsageError if there is no true box.
    """
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("pycocotools", "detection", "mean average precision") from error
    truth = _truth(boxes, classes, size)
    if not truth["annotations"]:
        raise UsageError("map50: no image has a true box (boxes.class >= 1), so there is nothing to detect")
    if not len(found):
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress, and takes no for no answer
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.params.maxDets = [1, 10, _DETECTIONS]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[1]), float(judge.stats[0])


def _table(boxes: Boxes, kept: Tensor, first: int) -> NDArray[np.float64]:
    """What is kept, in the columns that `average_precision` takes; images are numbered from `first`."""
    image, place = kept.nonzero(as_tuple=True)
    corners = boxes.corners[image, place].double().numpy()
    columns = [
        (image + first).numpy()[:, None],
        corners[:, :2],
        corners[:, 2:] - corners[:, :2],
        boxes.scores[image, place].double().numpy()[:, None],
        boxes.classes[image, place].numpy()[:, None],
    ]
    return np.concatenate(columns, axis=1, dtype=np.float64)


def _truth(boxes: Tensor, classes: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    image, place = (classes >= 1).nonzero(as_tuple=True)
    corners = boxes[image, place].double()
    wide, high = (corners[:, 2:] - corners[:, :2]).unbind(dim=1)
    rows = zip(
        image.tolist(), classes[image, place].tolist(), corners.tolist(), wide.tolist(), high.tolist(), strict=True
    )
    return {
        "info": {},
        "images": [{"id": number, "height": size[0], "width": size[1]} for number in range(len(boxes))],
        "categories": [{"id": number} for number in sorted(set(classes[classes >= 1].tolist()))],
        "annotations": [
            # From 1: the evaluator takes a match with number 0 for none.
            {"id": number, "image_id": i, "category_id": c, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            for number, (i, c, (x, y, _, _), w, h) in enumerate(rows, start=1)
        ],
    }
