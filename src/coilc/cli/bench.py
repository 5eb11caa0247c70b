"""``coilc bench``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Optional

import typer

from coilc.ir import InputError
from coilc.units import show_ratio, show_seconds

from .console import Stages, emit, emit_json
from .options import Entry, Json, Target, Threads
from .sources import is_example, load_example, load_program


def bench_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="file.py:function, which gives the module and its inputs.")
    ],
    artifact: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="NAME.coil", help="Its artifact; without one MODEL is compiled for --target."),
    ] = None,
    target: Target = "native",
    entry: Entry = "main",
    against: Annotated[str, typer.Option(help="Other ways to run it, comma-separated: eager, inductor.")] = "eager",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each side.")] = 20,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Time an artifact beside PyTorch, alternately, on the inputs that MODEL gives.

    On a GPU, between events of the device, with inputs and outputs in its memory.
    """
    if not is_example(model):
        raise InputError(f"{model}: bench needs file.py:function, which returns the module and its inputs")
    from coilc.benchmark import benchmark, kernels_installed
    from coilc.frontend.dynamic_shapes import Arguments
    from coilc.runtime import load

    with Stages() as progress, TemporaryDirectory(prefix="coilc-") as folder:
        progress("load the model")
        example = load_example(model)
        path = artifact
        if path is None:
            from coilc.codegen.compile import compile

            path = compile(load_program(model, (), None), Path(folder) / "model.coil", target=target, progress=progress)
        loaded = load(path, threads)
        progress("measure")
        arguments = Arguments(example.module, example.args, example.kwargs).values
        rivals = tuple(filter(None, against.split(",")))
        timings = benchmark(loaded, example.module, arguments, entry=entry, against=rivals, runs=runs)
    rows = [timing.row(timings[0].median) for timing in timings]
    about = {"target": loaded.describe()["target"]["name"], "threads": loaded.threads, "kernels": kernels_installed()}
    if json:
        emit_json({**about, "entry": entry, "sides": rows})
        return
    shown = [
        {
            **row,
            **{key: show_seconds(row[key]) for key in ("median", "best", "worst")},
            "coilc is": "" if row is rows[0] else show_ratio(row["ratio"]),
        }
        for row in rows
    ]
    columns = {key: key for key in ("name", "median", "best", "worst", "runs", "coilc is")}
    where = f"{about['target']}, {loaded.threads} threads on the CPU"
    extra = f"; eager uses kernels of {', '.join(about['kernels'])}" if about["kernels"] else ""
    emit(shown, columns, as_json=False, note=where + extra)
