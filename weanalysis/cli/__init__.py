"""The `weanalysis` command: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from weanalysis.cache import is_full
from weanalysis.cli import (
    ablate,
    cache,
    cluster,
    compare,
    costs,
    demo,
    doctor,
    fold,
    prune,
    report,
    saliency,
    show,
    train,
)
from weanalysis.errors import WeanalysisError
from weanalysis.memory import keep_freed_memory
from weanalysis.provenance import command_line

HELP = """Show which weights of a trained ConvNet matter, and where they are.

\b
Begin with one of these; neither needs a download:
  weanalysis demo                      train on handwritten digits, run the studies, open the dashboard
  weanalysis ablate --model resnet20   measure every location of a 5x5 grid in each layer
"""

COMMANDS = (
    demo.demo,
    ablate.ablate,
    train.train,
    compare.compare,
    saliency.saliency,
    prune.prune,
    fold.fold,
    costs.costs,
    cluster.cluster,
    report.report,
    show.list_,
    show.export,
    show.dashboard,
    cache.cache,
    doctor.doctor,
)


class _Commands(click.Group):
    """The commands; what one of them makes says by which command line."""

    def main(self, args: Sequence[str] | None = None, *given: Any, **more: Any) -> Any:
        with command_line(sys.argv[1:] if args is None else args):
            return super().main(args, *given, **more)


@click.group(
    cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="weanalysis")
def cli() -> None:
    pass


def enter(command: click.Command) -> None:
    """Make a command known, with the option that shows where an error comes from."""
    command.params.append(
        click.Option(["--debug"], is_flag=True, expose_value=False, help="Show where in the code an error comes from.")
    )
    cli.add_command(command)


for command in COMMANDS:
    enter(command)


def main() -> None:
    """Run the command line: exit 0 when done, 1 and a line for a user's error, 2 for wrong usage, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be what a terminal can show
    keep_freed_memory()
    try:
        cli(standalone_mode=False)
        sys.stdout.flush()  # here, where it can still be said that it failed
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            print(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", file=sys.stderr)
        print(f"error: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as interruption:
        # click turns Ctrl-C into an exception of its own, and keeps the one that says how to go on as its cause.
        print(str(interruption.__cause__ or interruption) or "interrupted", file=sys.stderr)
        sys.exit(130)
    except WeanalysisError as error:
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if not is_full(error):
            raise
        where = error.filename or "the output"
        print(
            f"error: {where} cannot be written ({error.strerror}); what was kept before is intact: make room, and "
            "run the same command again",
            file=sys.stderr,
        )
        if not error.filename:
            sys.stdout = None  # nothing is tried again at the end
        sys.exit(1)
