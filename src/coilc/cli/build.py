"""``coilc compile`` and ``coilc bundle``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from coilc.ir import InputError
from coilc.units import show_bytes

from .console import Stages, console, emit_json, folder_size
from .options import Algorithm, Artifact, Dynamic, Json, Lengths, Model, Target
from .sources import is_example, load_program


def compile_command(
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="NAME.coil", help="Where to write.")] = None,
    target: Target = "native",
    dynamic: Dynamic = None,
    lengths: Lengths = None,
    entries: Annotated[Optional[str], typer.Option(help="Entries to keep, comma-separated; all by default.")] = None,  # noqa: UP045
    algorithm: Algorithm = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, help="Longest sequence in prefill and step of a model with attention: the size of its caches."
        ),
    ] = None,
    weights: Annotated[Optional[Path], typer.Option(help="Safetensors file with the weights of IR text.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Compile MODEL into an artifact.

    An artifact is a folder with code, weights and a manifest; it is written completely or not at all.
    """
    from coilc.codegen.compile import compile
    from coilc.codegen.target import parse_target

    path = output or default_output(model)
    if path.suffix != ".coil":
        raise InputError(f"{path}: an artifact's name ends in .coil")
    parse_target(target)  # a wrong name should not cost an export
    began = time.perf_counter()
    with Stages() as progress:
        progress("export" if is_example(model) else "import")
        program = load_program(model, dynamic or (), weights, lengths=lengths, need_weights=True)
        chosen = tuple(entries.split(",")) if entries else None
        compile(program, path, target=target, entries=chosen, algorithm=algorithm, context=context, progress=progress)
    seconds, total, code = time.perf_counter() - began, folder_size(path), (path / "code.so").stat().st_size
    if json:
        emit_json({"artifact": str(path), "seconds": seconds, "bytes": total, "code_bytes": code})
    else:
        sizes = f"{show_bytes(total)}, of which {show_bytes(code)} is code"
        console().print(f"{path}: {sizes}; compiled in {seconds:.1f} s", markup=False)


def default_output(model: str) -> Path:
    """``model.pt2`` -> ``model.coil``; ``zoo.py:mamba`` -> ``mamba.coil``; both in the current folder."""
    return Path((model.rpartition(":")[2] if is_example(model) else Path(model).stem) + ".coil")


def bundle_command(
    artifact: Artifact,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NAME.tar.gz", help="Where to write.")
    ] = None,
    json: Json = False,
) -> None:
    """Pack an artifact for a device: a static program, coil-run, and the weights.

    The device needs no Python, no libraries and no compiler. The artifact's target decides which machines it runs on.
    """
    from coilc.codegen.bundle import bundle

    began = time.perf_counter()
    with Stages() as progress:
        path = bundle(artifact, output or Path(f"{artifact.resolve().stem}.tar.gz"), progress)
    seconds, total = time.perf_counter() - began, path.stat().st_size
    if json:
        emit_json({"bundle": str(path), "seconds": seconds, "bytes": total})
    else:
        console().print(f"{path}: {show_bytes(total)}; bundled in {seconds:.1f} s", markup=False)
