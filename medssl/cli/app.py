"""The `medssl` command: its subcommands, its exit codes, and one line for every error."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import MedsslError
from ..version import __version__
from . import compare, demo, embed, export, finetune, index, prepare, pretrain, probe, recipes, report
from .terminal import close_bars

app = typer.Typer(
    name="medssl",
    help="Self-supervised pretraining for medical images: from a folder of scans to an encoder, with proof of gain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_STOPPED = "medssl: stopped; run the same command again to go on (pretrain and finetune with --resume)\n"


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"medssl {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False,
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("index")(index.index)
app.command("prepare")(prepare.prepare)
app.command("pretrain")(pretrain.pretrain)
app.command("probe")(probe.probe)
app.command("embed")(embed.embed)
app.add_typer(finetune.app, name="finetune")
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("recipes")(recipes.recipes)
app.command("methods")(recipes.methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    share_cores()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("medssl")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        return _run(words)
    except Exception as error:
        if debug:
            close_bars()
            traceback.print_exc()
        return _tell(error)
    except KeyboardInterrupt:
        sys.stderr.write(_STOPPED)
        return 130
    finally:
        close_bars()
        root.removeHandler(handler)


def share_cores() -> None:
    """Let torch's threads sleep while they wait, unless the environment says otherwise; before torch is loaded.

    By default they spin. Beside other busy processes, or our own loader threads, a step then takes many times as long:
    on two cores with two other processes 1.8 to 4.3 s instead of 0.3 to 0.4 s (DynUNet of 0.34 M parameters, batch 4).
    """
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        os.environ.setdefault(name, "0")


def _run(words: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=words, prog_name="medssl", standalone_mode=False)
    except BaseException as error:
        # typer's own exceptions: wrong usage, --help, Exit. They know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            close_bars()
            error.show()
            return int(error.exit_code)
        if type(error).__name__ in {"Exit", "Abort"} and not isinstance(error, KeyboardInterrupt):
            code = int(getattr(error, "exit_code", 1))
            if code == 130:
                sys.stderr.write(_STOPPED)
            return code
        raise
    return code if isinstance(code, int) else 0


def _tell(error: Exception) -> int:
    close_bars()
    if isinstance(error, MedsslError):
        sys.stderr.write(f"medssl: {error}\n")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        sys.stderr.write(f"medssl: {error.strerror.lower()} ({error.filename or 'a file'})\n")
        return 1
    first = (str(error).splitlines() or [""])[0]
    sys.stderr.write(f"medssl: {type(error).__name__}: {first}; rerun with --debug and report it\n")
    return 1


def entry() -> None:
    """Be the console script."""
    sys.exit(main())
