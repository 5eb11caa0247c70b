"""``coilc compare`` and ``coilc doctor``: is the artifact right, and is this machine fit to compile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from coilc.ir import InputError

from .console import Stages, console, emit, emit_json
from .exits import Exit
from .options import Artifact, Dynamic, Entry, Json, Lengths, Threads
from .sources import dynamic_shapes, is_example, load_example, load_exported, parse_lengths


def compare_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="file.py:function, which gives the module and inputs, or a .pt2.")
    ],
    artifact: Artifact,
    entry: Entry = "main",
    dynamic: Dynamic = None,
    lengths: Lengths = None,
    inputs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="One input of a .pt2; repeat for each."),
    ] = None,
    tolerance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, help="Relative error allowed; by dtype unless given (1e-5 for float32)."),
    ] = None,
    layers: Annotated[bool, typer.Option(help="Also compare the values inside the model.")] = True,
    float64: Annotated[
        bool, typer.Option("--float64", help="Judge both sides by an evaluation in float64 (slow).")
    ] = False,
    report: Annotated[Optional[Path], typer.Option(metavar="FILE.html", help="Write a page with plots.")] = None,  # noqa: UP045
    runs: Annotated[int, typer.Option(min=0, help="Timed runs of each side; 0 for none.")] = 10,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compare an artifact with eager PyTorch.

    Outputs, the values inside the model, and speed. The exit code is 1 if an output is outside its tolerance.
    """
    from coilc.comparison import compare

    if not is_example(model) and Path(model).suffix != ".pt2":
        raise InputError(f"{model}: compare needs a .pt2, or file.py:function, which returns the module and its inputs")
    with Stages() as progress:
        progress("load the model")
        example = load_example(model) if is_example(model) else load_exported(Path(model), inputs or ())
        found = compare(
            example.module,
            artifact,
            args=example.args,
            kwargs=example.kwargs,
            dynamic_shapes=dynamic_shapes(example.dynamic_shapes, dynamic or ()),
            **{**example.options, **parse_lengths(lengths)},
            entry=entry,
            tolerance=tolerance,
            layers=layers,
            float64=float64,
            runs=runs,
            threads=threads,
            name=model,
            progress=progress,
        )
    if report:
        found.to_html(report)
    if json:
        emit_json(found.to_dict())
    else:
        console().print(found)
        if report:
            console().print(f"report: {report}", markup=False)
    if not found.ok:
        raise typer.Exit(int(Exit.FAILED))


def doctor_command(
    quick: Annotated[bool, typer.Option("--quick", help="Skip compiling and running a small graph.")] = False,
    json: Json = False,
) -> None:
    """Check that this machine can compile and run.

    Versions, linker, CPU, threads, settings, and a trial. The exit code is 1 if something is amiss.
    """
    from .doctor import examine

    findings = examine(quick)
    mark = {True: "✓", False: "✗", None: ""}
    rows = [{**vars(finding), "mark": mark[finding.ok]} for finding in findings]
    emit(rows, {"mark": "", "what": "what", "found": "found", "fix": "what to do"}, as_json=json)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(int(Exit.FAILED))
