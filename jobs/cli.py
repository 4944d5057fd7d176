"""The command ``darkroom``: gathers the verbs, and turns errors into one block for people and an exit code."""

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

import pipeline
from jobs import (
    calibrate,
    cluster_jobs,
    contact_sheet,
    explain,
    export,
    finalize,
    manifest,
    plan,
    render,
    status,
    submit,
    verify,
)
from jobs.help import Command, Group
from pipeline.errors import DarkroomError, InputError, without_credentials

INTERRUPTED = 130
app = typer.Typer(
    cls=Group,
    help="Darkroom renders every image of a prompt manifest and a sweep, once, on all the GPUs you give it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    plan.plan,
    render.render,
    submit.submit,
    status.status,
    verify.verify,
    explain.explain,
    export.export,
    finalize.finalize,
    contact_sheet.contact_sheet,
    calibrate.calibrate,
):
    app.command(_verb.__name__.replace("_", "-"), cls=Command)(_verb)
app.add_typer(manifest.app, name="manifest", cls=Group)
app.add_typer(cluster_jobs.app, name="jobs", cls=Group)


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
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    code = _run([word for word in sys.argv[1:] if word != "--debug"], debug)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code itself
        sys.stderr.write("interrupted: what is committed stands; the same command continues\n")
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    sys.stderr.flush()
    raise SystemExit(code)


def _interrupt(*_: object) -> None:
    """SIGTERM, which schedulers and preempted machines send, ends a verb as Ctrl-C does.

    Python's own handler of Ctrl-C would be replaced by asyncio's, which can lose it.
    """
    raise KeyboardInterrupt


def _run(words: list[str], debug: bool) -> int:
    """Run a verb; whatever it raises becomes one block on stderr and an exit code, the same with ``debug``."""
    caught: Exception
    try:
        code = app(words, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        if not error.format_message():  # no verb was given, and the help has been printed
            return 2
        caught, code = error, 2
        said = f"{error.format_message()}\n  `--help` after the command shows what it takes"
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # who read our output, `head` for one, has seen enough
        _forget_stdout()
        return 1
    except DarkroomError as error:
        caught, said, code = error, str(error), 2 if isinstance(error, InputError) else 1
    except Exception as error:  # noqa: BLE001  # the last resort: people get one block, never a traceback
        caught = error
        code, said = _unforeseen(error)
    if debug:
        sys.stderr.write(without_credentials("".join(traceback.format_exception(caught))))
    sys.stderr.write(without_credentials(f"error: {said}\n"))
    return code


def _unforeseen(error: Exception) -> tuple[int, str]:
    """Return the exit code and the text for an error that is not Darkroom's own."""
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return 2, "the working directory has been deleted\n  allowed: a working directory that exists, `cd` to one"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return 1, f"this is a bug in Darkroom: {reason}; run again with --debug to see where"


def _has_working_directory() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _forget_stdout() -> None:
    """Nobody reads it any more; what is left in it would fail once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
