"""The command line. Every command loads what it needs when it runs, so ``coilc --help`` is instant."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import typer

from coilc import settings

from .bench import bench_command
from .build import bundle_command, compile_command
from .checks import compare_command, doctor_command
from .execute import run_command
from .exits import report_and_exit
from .generate import generate_command
from .look import explain_command, inspect_command, opt_command
from .tables import ops_command, targets_command

EPILOG = (
    "Exit codes: 0 fine; 1 a comparison or check failed; 2 bad input; 3 the model uses something unsupported; "
    "4 the artifact is damaged or needs another machine; 70 a bug in coilc. COILC_DEBUG=1 shows tracebacks."
)

app = typer.Typer(
    name="coilc",
    help="Compile PyTorch models, recurrent ones above all, to small native artifacts, and prove them right.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    "compile": compile_command,
    "run": run_command,
    "generate": generate_command,
    "bundle": bundle_command,
    "compare": compare_command,
    "bench": bench_command,
    "inspect": inspect_command,
    "ops": ops_command,
    "opt": opt_command,
    "explain": explain_command,
    "targets": targets_command,
    "doctor": doctor_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(show: bool) -> None:
    if show:
        from coilc import __version__

        typer.echo(f"coilc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with an exit code of :class:`~coilc.cli.exits.Exit`."""
    if not settings.DEBUG.get():
        warnings.simplefilter("ignore")  # of libraries, about their own future
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        report_and_exit(error)
