"""report.html: well formed, complete in itself, deaf to hostile strings, the same bytes every time."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_example import arguments, example

from kdcache.errors import StorageError
from kdcache.report import summarise, write_report
from kdcache.report.page import write_page

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}$x_$\x1b[31m\u202egnp.exe\u2066\x00\ud800\n</svg>--> 漢字"
VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting, and gathers elements and the text that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def drawings(self) -> list[str]:
        """The SVG files inside the page."""
        pictures = [attrs for tag, attrs in self.elements if tag in ("img", "source")]
        uris = [attrs.get("src") or attrs.get("srcset") or "" for attrs in pictures]
        assert all(uri.startswith("data:image/svg+xml;base64,") for uri in uris)
        return [base64.b64decode(uri.partition(",")[2]).decode() for uri in uris]


def test_the_page_has_the_numbers_and_every_picture(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, example(), **arguments()))
    for words in (
        "few-labels",
        "84.31",
        "81.70 ± 0.20",
        "84.40 ± 0.10",
        "+2.70 ± 0.10",
        "13.5",
        "101,770",
        "33.4",
        "60,000",
        "1.00e−05",
        "0.0021",
        "5,321",
        "48,212",
        "0.9 kd (temperature 2) + 0.1 ce",
        "topk, dtype float16",
        "kdcache run few-labels.toml --out runs",
        "seeds 0, 1, 2",
    ):
        assert words in page.text, words
    titles = re.findall(r"<h3>(.*?)</h3>", (tmp_path / "report.html").read_text())
    assert titles == [
        "Accuracy by seed",
        "Accuracy over the grid",
        "Accuracy while fitting",
        "Held-out loss",
        "Training loss",
        "How sure the teacher is",
        "What the teacher confuses",
        "What kd confuses",
    ]
    assert len(page.drawings()) == 2 * len(titles)
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")


def test_it_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    path = write_report(tmp_path, example(), **arguments())
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "a"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    policy = next(attrs["content"] for _, attrs in page.elements if "Content-Security-Policy" in attrs.values())
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for drawing in page.drawings():
        root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", drawing))
        assert not [node for node in root.iter() if node.tag.endswith(("script", "foreignObject"))]
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_hostile_strings_are_spelled_out_everywhere(tmp_path: Path) -> None:
    path = write_report(tmp_path, example(HOSTILE), **arguments(HOSTILE))
    page = Page(path)
    assert "script" not in {tag for tag, _ in page.elements}
    assert [tag for tag, _ in page.elements] == [
        tag for tag, _ in Page(write_report(tmp_path, example("é"), **arguments("é"))).elements
    ], "a string made or closed an element"
    # Name, models, objectives, store, environment, command: all show the hostile end that they were given, spelled out.
    spelled = "<script>alert(1)</script>\"'&{{7*7}}$x_$\\x1b[31m\\u202egnp.exe\\u2066\\x00\\ud800\\n"
    assert page.text.count(spelled) >= 20
    seen = page.text + "".join(value or "" for _, attrs in page.elements for value in attrs.values())
    for everything in (seen, *page.drawings()):
        assert not [c for c in everything if not c.isprintable() and c != "\n"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert (
        write_report(first, example(), **arguments()).read_bytes()
        == write_report(second, example(), **arguments()).read_bytes()
    )


@pytest.mark.parametrize(
    "part",
    ["teacher", "baseline", "students", "store", "throughput", "seeds", "environment", "command", "grid", "name"],
)
def test_any_part_may_be_absent(tmp_path: Path, part: str) -> None:
    results = example()
    del results[part]
    write_page(tmp_path / "report.html", results, [])
    Page(tmp_path / "report.html")


def test_pictures_of_students_alone(tmp_path: Path) -> None:
    students = example()["students"]
    assert len(Page(write_report(tmp_path, {"students": students}, curves={})).drawings()) == 2


def test_a_run_without_evaluation_rows(tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "name": "bare",
        "students": {"kd": {"parameters": 7, "objective": None, "seconds": 1.0}},
        "baseline": {"parameters": 7},
        "teacher": {"model": "zoo:cnn"},
    }
    page = Page(
        write_report(
            tmp_path,
            results,
            curves={"kd": [[]]},
            teacher_probabilities_top=np.empty(0),
            predictions={"kd": np.array([0])},
            labels=np.array([-1]),
        )
    )
    assert "No accuracy was measured" in page.text
    assert page.drawings() == []
    assert "None" not in Page(write_report(tmp_path, {}, curves={})).text


def test_one_seed_and_many_students(tmp_path: Path) -> None:
    many = {f"student-{index}": {"accuracy": summarise([0.5 + index / 100])} for index in range(9)}
    run = [{"step": step, "split": "val", "loss": 1.0, "accuracy": 0.5} for step in (1, 2)]
    page = Page(write_report(tmp_path, {"students": many, "seeds": [0]}, curves={name: [run] for name in many}))
    assert "so no spread could be measured" in page.text
    assert "Agreement" not in page.text  # a column that nobody fills
    assert "the 7 best of 9 students" in page.text


def test_a_hundred_classes(tmp_path: Path) -> None:
    labels = np.arange(100)
    page = Page(write_report(tmp_path, example(), curves={}, predictions={"teacher": labels}, labels=labels))
    assert "What the teacher confuses" in page.text


def test_a_place_that_cannot_be_a_folder_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "file", {}, curves={})
