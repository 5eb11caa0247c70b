"""``coilc run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from coilc.ir import InputError
from coilc.units import show_seconds

from .arrays import random_inputs, read_dims, read_inputs, write_outputs
from .console import emit, emit_json
from .options import Artifact, Entry, Json, Seed, Threads


def run_command(
    artifact: Artifact,
    entry: Entry = "main",
    inputs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="One input; repeat for each."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Seeded random arrays for the inputs not given.")] = False,
    dims: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--dim", metavar="NAME=NUMBER", help="Extent of a dynamic dim in random inputs."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write NAME.npy files.")] = None,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run an artifact once, on .npy files or at random.

    This needs NumPy alone, neither torch nor tvm.
    """
    from coilc.runtime import load

    model = load(artifact, threads)
    described = model.describe()["entries"]
    if entry not in described:
        raise InputError(f"{artifact} has no entry '{entry}'; it has {', '.join(described)}")
    arrays = read_inputs(inputs or ())
    if random:
        arrays = random_inputs(described[entry], read_dims(dims or ()), seed) | arrays
    began = time.perf_counter()
    outputs = model.run(entry, arrays)
    seconds = time.perf_counter() - began
    if output:
        write_outputs(output, outputs)
    rows = [describe_array(name, array) for name, array in outputs.items()]
    if json:
        emit_json({"entry": entry, "seconds": seconds, "outputs": rows})
        return
    columns = {"name": "output", "dtype": "dtype", "shape": "shape", "min": "min", "mean": "mean", "max": "max"}
    note = f"one run in {show_seconds(seconds)}" + (f"; written to {output}" if output else "")
    emit(rows, columns, as_json=False, note=note)


def describe_array(name: str, array: np.ndarray) -> dict[str, Any]:
    """Name, type and extremes of an array; ``finite`` says whether it holds no NaN or infinity."""
    row: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind != "c":
        wide = array.astype(np.float64)
        finite = bool(np.isfinite(wide).all())
        row |= {"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max()), "finite": finite}
    return row
