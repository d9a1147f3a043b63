"""`kdcache`: the group of commands, and what an error looks like from a shell."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback

import click

from kdcache.errors import KdcacheError

__all__ = ["main"]

# Each command is imported when it is called, so that `kdcache -h` does not wait for torch.
_COMMANDS = {
    "convert": "store:convert",
    "data": "data:data",
    "demo": "demo:demo",
    "dump": "dump:dump",
    "eval": "train:evaluate",
    "fidelity": "fidelity:fidelity",
    "info": "store:info",
    "metrics": "catalogue:metrics",
    "objectives": "catalogue:objectives",
    "recipes": "recipes:recipes",
    "run": "run:run",
    "train": "train:train",
    "verify": "store:verify",
}


class _Lazy(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name].split(":")
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdcache")
def kdcache() -> None:
    """Soft-label datasets for offline knowledge distillation: run the teacher once, train many students.

    \b
    Example, from nothing to a table:
      kdcache demo
    Example, stage by stage:
      kdcache dump recipe.toml --out store/
      kdcache train recipe.toml --store store/ --out student/

    Exit codes: 0 done, 64 usage, 65 bad data, 74 disk or network, 75 interrupted (run it again to go on),
    77 refused for trust, 70 a bug of ours.
    """


def main() -> None:
    """Run the command line and exit with a documented code; a traceback appears only with KDCACHE_DEBUG=1."""
    sys.exit(_run())


def _run() -> int:
    # Work that can stop well listens itself; before and after it SIGTERM ends us as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        kdcache.main(standalone_mode=False)
        sys.stdout.flush()
        return 0
    except SystemExit:  # click's own answer to a broken pipe
        return 74
    except KdcacheError as error:
        return _say(error, str(error), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2 and later
            error.show()
            return 64
        where = f"{error.ctx.command_path}: " if error.ctx else ""
        return _say(error, f"{where}{error.format_message()} (see -h)", 64)
    except click.ClickException as error:
        return _say(error, error.format_message(), 64)
    except (click.Abort, KeyboardInterrupt) as error:
        return _say(error, "stopped; run the same command again to go on", 75)
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, and keep Python from trying at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 74
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _say(error, f"{place}{error.strerror or error}", 74)
    except MemoryError as error:
        return _say(error, "out of memory; lower batch_size, unit_rows or train.memory_mib", 74)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, for a GPU; torch itself may not be loaded
            return _say(error, f"{error}; lower the batch_size, or raise train.accumulate", 74)
        said = (
            f"{type(error).__name__}: {error}; this is a bug of kdcache: please report it (KDCACHE_DEBUG=1 shows where)"
        )
        return _say(error, said, 70)


def _say(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("KDCACHE_DEBUG"):
        traceback.print_exception(error)
    # One line, and nothing in it that a terminal would obey: the words may quote a file from a stranger.
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    click.echo(f"kdcache: {line}", err=True)
    return code
