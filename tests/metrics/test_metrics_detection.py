"""Mean average precision: tiny cases by hand, through the outputs of a grid."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
import torch
from judged_rows import rows

from kdcache.errors import MissingExtra, UsageError
from kdcache.metrics import Judged
from kdcache.metrics.detection import average_precision, map50

SIZE = (100, 100)


@pytest.fixture
def _evaluator() -> None:
    pytest.importorskip("pycocotools")


def truth(*images: list[tuple[int, list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [N, M, 4] and classes [N, M], padded with -1."""
    most = max(map(len, images))
    boxes = torch.full((len(images), most, 4), -1.0)
    classes = torch.full((len(images), most), -1)
    for image, entries in enumerate(images):
        for place, (kind, corners) in enumerate(entries):
            boxes[image, place], classes[image, place] = torch.tensor(corners), kind
    return boxes, classes


def found(*entries: tuple[int, list[float], float, int]) -> np.ndarray:
    """(image, corners, score, class) as the evaluator takes it."""
    return np.array([[i, x1, y1, x2 - x1, y2 - y1, s, c] for i, (x1, y1, x2, y2), s, c in entries])


@pytest.mark.usefixtures("_evaluator")
class TestAveragePrecision:
    BOX = [10.0, 10.0, 30.0, 30.0]  # noqa: RUF012

    def test_perfect(self) -> None:
        boxes, classes = truth([(1, self.BOX), (2, [50.0, 50.0, 80.0, 60.0])], [(1, [0.0, 0.0, 9.0, 9.0])])
        entries = found((0, self.BOX, 0.9, 1), (0, [50.0, 50.0, 80.0, 60.0], 0.8, 2), (1, [0.0, 0.0, 9.0, 9.0], 0.7, 1))
        assert average_precision(entries, boxes, classes, SIZE) == (pytest.approx(1.0), pytest.approx(1.0))

    def test_the_overlap_decides(self) -> None:
        """The overlap is 16/25 = 0.64: right at 0.5, 0.55 and 0.6, wrong at the seven others."""
        boxes, classes = truth([(1, [0.0, 0.0, 20.0, 25.0])])
        entries = found((0, [0.0, 0.0, 20.0, 16.0], 0.9, 1))
        assert average_precision(entries, boxes, classes, SIZE) == (pytest.approx(1.0), pytest.approx(0.3))

    def test_a_wrong_box_before_the_right_one(self) -> None:
        """Precision 1/2 at every recall."""
        boxes, classes = truth([(1, self.BOX)])
        entries = found((0, [60.0, 60.0, 80.0, 80.0], 0.9, 1), (0, self.BOX, 0.8, 1))
        assert average_precision(entries, boxes, classes, SIZE) == (pytest.approx(0.5), pytest.approx(0.5))

    def test_half_of_them(self) -> None:
        """One of two boxes: precision 1 for the 51 of 101 recalls up to 1/2, 0 beyond."""
        boxes, classes = truth([(1, self.BOX), (1, [60.0, 60.0, 80.0, 80.0])])
        entries = found((0, self.BOX, 0.8, 1))
        assert average_precision(entries, boxes, classes, SIZE)[0] == pytest.approx(51 / 101)

    def test_classes_count_alike(self) -> None:
        """Class 2 is found and class 1 is taken for class 3, which nothing is: the mean of 1 and 0."""
        boxes, classes = truth([(1, self.BOX), (2, [60.0, 60.0, 80.0, 80.0])])
        entries = found((0, self.BOX, 0.8, 3), (0, [60.0, 60.0, 80.0, 80.0], 0.8, 2))
        assert average_precision(entries, boxes, classes, SIZE)[0] == pytest.approx(0.5)

    def test_the_right_box_in_another_image(self) -> None:
        boxes, classes = truth([(1, self.BOX)], [])
        assert average_precision(found((1, self.BOX, 0.8, 1)), boxes, classes, SIZE) == (0.0, 0.0)

    def test_nothing_found_and_nothing_to_find(self) -> None:
        boxes, classes = truth([(1, self.BOX)])
        assert average_precision(np.zeros((0, 7)), boxes, classes, SIZE) == (0.0, 0.0)
        with pytest.raises(UsageError, match="no image has a true box"):
            average_precision(found((0, self.BOX, 0.8, 1)), boxes, torch.full_like(classes, -1), SIZE)


def grid(images: int = 2, classes: int = 2) -> dict[str, torch.Tensor]:
    """40 x 40 pixels at stride 8: 25 positions, all background; sides 8, so boxes of 16 x 16."""
    logits = torch.zeros(images, 25, classes + 1)
    logits[:, :, 0] = 9.0
    return {"logits": logits, "boxes": torch.full((images, 25, 4), 8.0)}


def judged(outputs: dict[str, torch.Tensor], true: torch.Tensor, classes: torch.Tensor, **change: Any) -> Judged:
    fields = {"boxes": true, "boxes__class": classes, "input": torch.zeros(len(true), 3, 40, 40, dtype=torch.uint8)}
    return rows(outputs, **{**fields, **change})


@pytest.mark.usefixtures("_evaluator")
class TestThroughTheGrid:
    # Around the centre of position 6, 12, 12, and of position 18, 28, 28.
    TRUE = truth([(1, [4.0, 4.0, 20.0, 20.0])], [(2, [20.0, 20.0, 36.0, 36.0])])

    def test_found(self, capsys: pytest.CaptureFixture[str]) -> None:
        outputs = grid()
        outputs["logits"][0, 6, 1] = outputs["logits"][1, 18, 2] = 20.0
        assert map50(judged(outputs, *self.TRUE)) == {"map50": pytest.approx(1.0), "map50_95": pytest.approx(1.0)}
        assert capsys.readouterr().out == ""

    def test_a_double_is_suppressed(self) -> None:
        """The neighbour gives the same box, more sure of itself, and one that is less off is not counted again."""
        outputs = grid()
        outputs["logits"][0, 6, 1] = outputs["logits"][1, 18, 2] = 20.0
        outputs["logits"][0, 7, 1] = 19.0
        outputs["boxes"][0, 7] = torch.tensor([16.0, 8.0, 0.0, 8.0])
        outputs["logits"][1, 17, 2], outputs["logits"][1, 0, 2] = 19.5, 18.0
        outputs["boxes"][1, 17] = torch.tensor([0.0, 8.0, 16.0, 8.0])
        kept = map50(judged(outputs, *self.TRUE))
        assert kept["map50"] == pytest.approx(1.0)  # the stray box at position 0 comes last

    def test_batches_of_images_do_not_matter(self) -> None:
        """70 images are three batches; every image's box is its own."""
        generator = torch.Generator().manual_seed(0)
        place = torch.randint(25, (70,), generator=generator)
        centre = torch.stack([place % 5, place // 5], dim=1) * 8.0 + 4
        corners = torch.cat([(centre - 8).clamp(0, 40), (centre + 8).clamp(0, 40)], dim=1)[:, None]
        outputs = grid(70)
        outputs["logits"][torch.arange(70), place, 2] = 20.0
        found = map50(judged(outputs, corners, torch.full((70, 1), 2)))
        assert found == {"map50": pytest.approx(1.0), "map50_95": pytest.approx(1.0)}
        outputs["logits"][:35] = grid(35)["logits"]
        assert map50(judged(outputs, corners, torch.full((70, 1), 2)))["map50"] == pytest.approx(51 / 101, abs=0.01)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"input": torch.zeros(2, 3, 90, 40)}, "25 positions are no grid over inputs of 90 x 40 pixels"),
            ({"boxes": torch.zeros(2, 3, 4)}, r"boxes are \[2, 3, 4\] and boxes\.class \[2, 1\]"),
            ({"boxes__class": torch.full((2, 1), 3)}, r"has \[3\], and the network's 3 outputs, .* take 1 to 2"),
            ({"boxes__class": torch.tensor([[0], [1]])}, r"has \[0, 1\], .* of which 0 is the background"),
        ],
    )
    def test_what_does_not_fit(self, change: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            map50(judged(grid(), *self.TRUE, **change))

    def test_outputs_that_are_no_grid(self) -> None:
        with pytest.raises(UsageError, match=r"needs its output .boxes."):
            map50(judged({"logits": grid()["logits"]}, *self.TRUE))
        with pytest.raises(UsageError, match=r'the output "boxes" \[2, 25, 2\]; a dense detector gives'):
            map50(judged({**grid(), "boxes": torch.zeros(2, 25, 2)}, *self.TRUE))


def test_without_the_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("pycocotools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'kdcache\[detection\]'"):
        map50(judged(grid(), *truth([(1, [0.0, 0.0, 9.0, 9.0])], [])))
