"""On real data: a naive forecast of NAB's series, and a detector that is told the truth about blood cells.

Both need the data sets in the folder that KDCACHE_DATA names, and are skipped without.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_rows import rows

from kdcache.metrics.detection import map50
from kdcache.metrics.windows import window_f1

WIDTH, HEIGHT, STRIDE = 128, 96, 8


def folder(name: str) -> Path:
    found = Path(os.environ.get("KDCACHE_DATA", "")) / name
    if not os.environ.get("KDCACHE_DATA") or not found.is_dir():
        pytest.skip(f"KDCACHE_DATA names no folder with {name}; `kdcache fetch` says what can be fetched")
    return found


def nab() -> dict[str, np.ndarray]:
    """The seven series: values less those before (what a naive forecast is off by), labels, parts by time."""
    place = folder("nab")
    windows = json.loads((place / "labels" / "combined_windows.json").read_text())
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("off", "label", "part", "series", "position")}
    for number, path in enumerate(sorted((place / "data" / "realKnownCause").glob("*.csv"))):
        with path.open() as file:
            table = list(csv.reader(file))[1:]
        times = np.array([row[0] for row in table], dtype="datetime64[s]")
        values = np.array([float(row[1]) for row in table])
        label = np.zeros(len(times), dtype=np.int64)
        for first, last in windows[f"realKnownCause/{path.name}"]:
            label[(times >= np.datetime64(first)) & (times <= np.datetime64(last))] = 1
        part = np.digitize(np.arange(len(times)), [0.2 * len(times), 0.5 * len(times)])
        for name, column in {
            "off": np.abs(np.diff(values, prepend=values[0])),
            "label": label,
            "part": part,
            "series": np.full(len(times), number),
            "position": np.arange(len(times)),
        }.items():
            columns[name].append(column)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def smooth(values: np.ndarray) -> np.ndarray:
    return np.array([values[max(row - 4, 0) : row + 1].mean() for row in range(len(values))])


def test_windows_of_real_series() -> None:
    """The counts by a loop over the rows, at the threshold that was chosen."""
    table = nab()
    order = np.random.default_rng(0).permutation(len(table["off"]))
    fields = {name: torch.tensor(values[order]) for name, values in table.items() if name != "off"}
    off = torch.tensor(table["off"][order])[:, None]
    found = window_f1(rows({"logits": off}, target=torch.zeros_like(off), **fields), smoothing=5)
    table["off"] = np.concatenate([smooth(table["off"][table["series"] == number]) for number in range(7)])
    detected = alarms = windows = rows_above = anomalous = 0
    for number in range(7):
        own = table["series"] == number
        usual = table["off"][own & (table["part"] == 1) & (table["label"] == 0)].mean()
        test = own & (table["part"] == 2)
        above = table["off"][test] / usual > found["window_threshold"]
        label = table["label"][test]
        rows_above, anomalous = rows_above + (above & (label == 0)).sum(), anomalous + label.sum()
        for inside, run in itertools.groupby(zip(label, above, strict=True), key=lambda row: row[0]):
            hits = [bool(hit) for _, hit in run]
            windows += inside
            detected += inside and any(hits)
            alarms += 0 if inside else sum(hit and not before for before, hit in itertools.pairwise([False, *hits]))
    alarms += int(rows_above / (anomalous / windows))
    assert windows >= 7
    assert detected > 0
    assert found["window_recall"] == pytest.approx(detected / windows)
    assert found["window_precision"] == pytest.approx(detected / (detected + alarms))
    assert found["window_f1"] == pytest.approx(2 * detected / (detected + alarms + windows))


def cells() -> tuple[torch.Tensor, torch.Tensor]:
    """True boxes [N, M, 4] of the test images, scaled to 96 x 128, and their classes from 1 [N, M]."""
    place = folder("bccd")
    names = ["Platelets", "RBC", "WBC"]
    stems = (place / "ImageSets" / "Main" / "test.txt").read_text().split()
    images = []
    for stem in stems:
        root = ET.parse(place / "Annotations" / f"{stem}.xml").getroot()
        wide, high = (float(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        scale = [WIDTH / wide, HEIGHT / high] * 2
        entries = []
        for one in root.iter("object"):
            ends = [float(one.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax")]
            entries.append(
                (names.index(one.findtext("name", "")) + 1, [a * b for a, b in zip(ends, scale, strict=True)])
            )
        images.append([entry for entry in entries if entry[1][2] > entry[1][0] and entry[1][3] > entry[1][1]])
    boxes = torch.full((len(images), max(map(len, images)), 4), -1.0)
    classes = torch.full(boxes.shape[:2], -1)
    for row, entries in enumerate(images):
        for column, (kind, corners) in enumerate(entries):
            boxes[row, column], classes[row, column] = torch.tensor(corners), kind
    return boxes, classes


def test_a_detector_that_knows_the_truth() -> None:
    """Every box is given at the place of the grid that its middle falls into. Two middles in one cell lose a box, and
    neighbours that overlap by more than is allowed one more, so it stays a little below 1; with every box moved by a
    fifth of its size the overlap is 2/3 * 2/3 / (2 - 4/9) or so, and nothing above 0.7 is left."""
    pytest.importorskip("pycocotools")
    boxes, classes = cells()
    columns, places = WIDTH // STRIDE, (WIDTH // STRIDE) * (HEIGHT // STRIDE)
    logits = torch.zeros(len(boxes), places, 4)
    logits[:, :, 0] = 12.0
    sides = torch.zeros(len(boxes), places, 4)
    image, which = (classes > 0).nonzero(as_tuple=True)
    corners = boxes[image, which]
    cell = ((corners[:, :2] + corners[:, 2:]) / 2 / STRIDE).long().clamp(min=0)
    place = cell[:, 1] * columns + cell[:, 0]
    centre = (cell + 0.5) * STRIDE
    logits[image, place] = 0.0
    logits[image, place, classes[image, which]] = 12.0
    sides[image, place] = torch.cat([centre - corners[:, :2], corners[:, 2:] - centre], dim=1)
    fields = {"boxes__class": classes, "input": torch.zeros(len(boxes), 3, HEIGHT, WIDTH, dtype=torch.uint8)}
    found = map50(rows({"logits": logits, "boxes": sides}, boxes=boxes, **fields))
    assert found["map50"] > 0.95
    assert found["map50"] - found["map50_95"] < 0.02
    wide = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    moved = torch.where((classes > 0)[:, :, None], boxes + 0.2 * wide, boxes)
    off = map50(rows({"logits": logits, "boxes": sides}, boxes=moved, **fields))
    assert off["map50_95"] < 0.1 < found["map50_95"]
