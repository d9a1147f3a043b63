"""`kdcache data`: the public datasets that recipes may name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from kdcache.recipe_file import data_root
from kdcache.sources import fetch, find_dataset, is_present, known_datasets

__all__ = ["data"]

_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Look here instead of in $KDCACHE_DATA.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """List and fetch the public datasets that a recipe may name.

    \b
    Example: kdcache data get fashion-mnist
    """


@data.command("list")
@_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_datasets(root: Path | None, as_json: bool) -> None:
    """Show the known datasets and which are on this machine.

    \b
    Example: kdcache data list --json
    """
    root = root or data_root()
    facts = {
        name: {
            "title": each.title,
            "licence": each.licence,
            "citation": each.citation,
            "homepage": each.homepage,
            "bytes": sum(record.bytes for record in each.downloads),
            "splits": {split: is_present(name, split, root) for split in each.splits},
        }
        for name, each in known_datasets().items()
    }
    if as_json:
        click.echo(json.dumps({"root": str(root), "datasets": facts}, indent=2, ensure_ascii=False))
        return
    width = max(map(len, known_datasets()))
    for name, each in known_datasets().items():
        here = [split for split in each.splits if is_present(name, split, root)]
        size = sum(record.bytes for record in each.downloads) / 1e6
        absent = "absent, to be put there by hand" if each.obtain else f"absent, {size:.0f} MB to fetch"
        click.echo(f"{name:<{width}} {'here: ' + ', '.join(here) if here else absent}")
        click.echo(f"{'':<{width}} {each.title}")
        click.echo(f"{'':<{width}} licence: {each.licence}")
    click.echo(f"kept in {root}")


@data.command("get")
@click.argument("name")
@_ROOT
def get_dataset(name: str, root: Path | None) -> None:
    """Fetch a dataset from its publisher; what has arrived already is not fetched again.

    \b
    Example: kdcache data get cifar-10 --root ~/datasets
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    dataset = find_dataset(name)
    if not dataset.downloads:
        click.echo(f"{name}: {dataset.obtain or 'comes with scikit-learn, there is nothing to fetch'}")
        return
    folder = (root or data_root()) / name
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as bars:
            tasks = {
                record.file: bars.add_task(record.file, total=record.bytes, start=False, visible=False)
                for record in dataset.downloads
            }

            def advance(file: str, here: int, total: int) -> None:
                bars.start_task(tasks[file])
                bars.update(tasks[file], completed=here, total=total, visible=True)

            brought = fetch(name, root, advance)
    else:
        brought = fetch(name, root, _announce())
    for path in brought:
        click.echo(f"{path}  {path.stat().st_size} bytes")
    click.echo(f"{name}: {'ready' if brought else 'all there already'} in {folder}")


def _announce() -> Callable[[str, int, int], None]:
    """Progress where no terminal is: one line as a file starts and one as it ends."""
    started: set[str] = set()

    def line(file: str, here: int, total: int) -> None:
        if file not in started or here == total:
            started.add(file)
            click.echo(f"{file}: {here} of {total} bytes", err=True)

    return line
