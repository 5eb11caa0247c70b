"""Arrays on the command line: inputs from .npy files or at random, outputs to a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coilc.ir import DTYPES, Dim, InputError
from coilc.ir.dims import evaluate, parse_dim

RANDOM_EXTENT = 16  # of a dynamic dim that --dim leaves open, if its range allows


def read_inputs(options: Sequence[str]) -> dict[str, np.ndarray]:
    """``name=file.npy`` options as arrays.

    Raises:
        InputError: an option of another form, given twice, or a file that is no array.
    """
    arrays: dict[str, np.ndarray] = {}
    for option in options:
        name, equals, file = option.partition("=")
        if not equals or not name or not file:
            raise InputError(f"--input {option}: write --input name=file.npy")
        if name in arrays:
            raise InputError(f"--input {name} is given twice")
        try:
            arrays[name] = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{file}: not a .npy file ({error})") from None
    return arrays


def read_dims(options: Sequence[str]) -> dict[str, int]:
    """``--dim L=64`` options as numbers."""
    dims = {}
    for option in options:
        name, _, number = option.partition("=")
        if not number.isdecimal():
            raise InputError(f"--dim {option}: write --dim NAME=NUMBER, as in L=64")
        dims[name] = int(number)
    return dims


def random_inputs(entry: Mapping[str, Any], dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Seeded arrays for every input of an entry of ``Model.describe()``.

    Floats are standard normal; integers are 0 or 1, since most integer inputs are indices into something unknown here.
    """
    rng = np.random.default_rng(seed)
    symbols = {symbol["name"]: (symbol["low"], symbol["high"]) for symbol in entry["symbols"]}
    unknown = sorted(set(dims) - set(symbols))
    if unknown:
        known = ", ".join(symbols) or "none"
        raise InputError(f"--dim {unknown[0]}: there is no such dim; the dynamic dims are {known}")
    bindings = {name: dims.get(name, _extent(*limits)) for name, limits in symbols.items()}
    return {tensor["name"]: _random(rng, tensor, bindings) for tensor in entry["inputs"]}


def _extent(low: int, high: int | None) -> int:
    return max(low, min(RANDOM_EXTENT, high if high is not None else RANDOM_EXTENT))


def _random(rng: np.random.Generator, tensor: Mapping[str, Any], bindings: Mapping[str, int]) -> np.ndarray:
    dtype = DTYPES[tensor["dtype"]]
    shape = tuple(evaluate(_dim(dim), bindings) for dim in tensor["dims"])
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    if dtype.is_complex:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy)
    return rng.integers(0, 2, shape).astype(dtype.numpy)


def _dim(dim: int | str) -> Dim:
    return dim if isinstance(dim, int) else parse_dim(dim)


def write_outputs(folder: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """Write ``name.npy`` per output. The folder appears complete or not at all; an older result is replaced.

    Raises:
        InputError: the folder exists and holds something other than .npy files.
    """
    if folder.exists() and (not folder.is_dir() or any(p.suffix != ".npy" for p in folder.iterdir())):
        raise InputError(f"{folder} exists and holds more than .npy files; name a new folder")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        for name, array in outputs.items():
            np.save(new / f"{name}.npy", array if array.dtype.name != "bfloat16" else array.astype(np.float32))
        if folder.exists():
            os.rename(folder, work / "old")
        os.rename(new, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
