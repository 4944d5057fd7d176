"""The command ``darkroom``: gathers the verbs, and turns errors into one block for people and an exit code."""

import sys
from pathlib import Path
from typing import Annotated

import typer

import pipeline

INTERRUPTED = 130
_HERE = Path(__file__).resolve().parent.parent


def _check_own_packages() -> None:
    """``pipeline`` and ``jobs`` are common names, and Ray puts a job's folder first on the path."""
    found = Path(pipeline.__file__).resolve().parent.parent
    if found != _HERE:
        sys.stderr.write(
            f"error: the package `pipeline` that was imported is not Darkroom's\n"
            f"  where:   {found / 'pipeline'}\n  allowed: {_HERE / 'pipeline'}\n"
        )
        raise SystemExit(2)


_check_own_packages()

# Only now: these import from ``pipeline``.
from jobs import finalize, manifest, plan, render, status  # noqa: E402
from pipeline.errors import DarkroomError, InputError  # noqa: E402

app = typer.Typer(
    help="Darkroom renders every image of a prompt manifest and a sweep, once, on all the GPUs you give it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(plan.plan)
app.command("render")(render.render)
app.command("status")(status.status)
app.command("finalize")(finalize.finalize)
app.add_typer(manifest.app, name="manifest")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"darkroom {pipeline.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """What every verb takes. ``main`` sees to ``--debug``, since it outlives the verb."""


def main() -> None:
    """Run the command line and exit with 0, 1, 2, 3 or 130 (``docs/operations.md``)."""
    debug = "--debug" in sys.argv
    try:
        code = app([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except typer.TyperException as error:
        sys.stderr.write(f"error: {error.format_message()}\n  `--help` after the command shows what it takes\n")
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except DarkroomError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        code = 2 if isinstance(error, InputError) else 1
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code itself
        sys.stderr.write("interrupted: what is committed stands; the same command continues\n")
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code if isinstance(code, int) else 0)
