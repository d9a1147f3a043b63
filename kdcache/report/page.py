"""`report.html`: one page that needs no network and no script, light and dark, for screen, phone and paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdcache.files import replace_bytes
from kdcache.report.measure import measure_of
from kdcache.report.rows import filled, headings, rows
from kdcache.report.verdict import NOISE, verdict
from kdcache.report.wording import NOTHING, amount, count, spread, visible

__all__ = ["Picture", "write_page"]


@dataclass(frozen=True)
class Picture:
    """A picture in both modes, as `data:` URIs, and the words that go with it."""

    title: str
    caption: str
    alt: str
    light: str
    dark: str


def write_page(path: Path, results: Mapping[str, Any], pictures: Sequence[Sequence[Picture]]) -> None:
    """Write the page of `results` (results.json) to `path`, each group of pictures beginning a line of its own.

    The same input gives the same bytes.
    """
    from jinja2 import Environment, StrictUndefined

    # `finalize` sees every value on its way to the page, autoescape sees it after: no string needs remembering.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_spelled, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    store, table = results.get("store") or {}, rows(results)
    stores = results.get("stores") or {"": store}
    page = template.render(
        title=results.get("name") or "kdcache run",
        verdict=verdict(results),
        headline=_headline(results),
        headings=headings(results),
        columns=filled(table),
        rows=table,
        nothing=NOTHING,
        noise=f"{NOISE:g}",
        seeds=results.get("seeds") or [],
        store=_store(store, results.get("throughput") or {}),
        fields=[item for name, one in stores.items() for item in _fields(one, name)],
        fidelity=[item for name, one in stores.items() for item in _fidelity(one, name)],
        pictures=pictures,
        commands=_commands(results.get("command")),
        environment=[(key, _plain(value)) for key, value in (results.get("environment") or {}).items()],
    )
    replace_bytes(path, f"{page}\n".encode())


def _spelled(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _commands(command: Any) -> list[str]:
    if isinstance(command, str):
        return [command]
    return [str(line) for line in command or ()]


def _headline(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, unit) of the figures at the top."""
    measure = measure_of(results)
    key = measure.key

    def over_seeds(found: Any) -> str:
        return spread(found, measure.form, measure.form)

    students = {name: student for name, student in (results.get("students") or {}).items() if student.get(key)}
    unit = measure.unit or f"{key}, lower is better"
    found = [
        ("Teacher", measure.form((results.get("teacher") or {}).get(key)), unit),
        ("Student on labels alone", over_seeds((results.get("baseline") or {}).get(key)), unit),
    ]
    if name := measure.best({name: float(student[key]["mean"]) for name, student in students.items()}):
        best = students[name]
        one = len(students) == 1
        found.append(
            ("Distilled student" if one else f"Best of {len(students)} distilled students", over_seeds(best[key]), unit)
        )
        if best.get("gain"):
            gained = spread(best["gain"], measure.gain, measure.form)
            found.append(("Gain" if one else "Its gain", gained, "points" if measure.unit else f"{key} saved"))
    return [item for item in found if item[1] != NOTHING]


def _store(store: Mapping[str, Any], throughput: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Rows", count(store.get("rows"))),
        ("Bytes per row", amount(store.get("bytes_per_row"))),
        ("of them teacher's targets", amount(store.get("target_bytes_per_row"))),
        ("Format", str(store.get("format") or NOTHING)),
        ("Dump, samples a second", count(throughput.get("dump_samples_per_second"))),
        ("Fitting, samples a second", count(throughput.get("train_samples_per_second"))),
        ("Digest (SHA-256 of the manifest)", str(store.get("digest") or NOTHING)),
    ]
    return [fact for fact in facts if fact[1] != NOTHING]


def _fields(store: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    """(field, how it is stored), whatever the store says of it; of several stores the teacher's fields alone."""
    found = []
    for field_name, field in (store.get("fields") or {}).items():
        if prefix and field_name in ("id", "input", "segment", "label"):
            continue
        name = f"{prefix}: {field_name}" if prefix else field_name
        if isinstance(field, Mapping):
            inner = field.get("configuration")
            flat = dict(field)
            if isinstance(inner, Mapping):
                del flat["configuration"]
                flat |= inner
                # The configuration's dtype is that of what is stored, the field's that of what is decoded.
                flat |= {"decoded to": field.get("dtype")} if "dtype" in inner else {}
            parts = [
                _plain(value) if key == "codec" else f"{key} {_plain(value)}"
                for key, value in flat.items()
                if value not in (None, {}, [], (), "")
            ]
            found.append((str(name), ", ".join(parts)))
        else:
            found.append((str(name), _plain(field)))
    return found


def _fidelity(store: Mapping[str, Any], prefix: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(field, [(temperature, KL in nats)])."""
    found = []
    for name, measured in (store.get("fidelity") or {}).items():
        kl = measured.get("kl") if isinstance(measured, Mapping) else None
        if isinstance(kl, Mapping) and kl:
            words = [(str(temperature), amount(value)) for temperature, value in kl.items()]
            found.append((f"{prefix}: {name}" if prefix else str(name), words))
    return found
