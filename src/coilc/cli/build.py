"""``coilc compile`` and ``coilc bundle``."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from coilc.ir import InputError
from coilc.units import show_bytes

from .console import Stages, console, emit_json, folder_size
from .options import (
    Algorithm,
    Artifact,
    Dynamic,
    Entries,
    Json,
    Lengths,
    Model,
    Precision,
    PrecisionName,
    Quantize,
    States,
    Target,
)  # fmt: skip
from .sources import is_example, load_program


class Emit(str, Enum):
    """What to write besides an artifact."""

    PROGRAM = "program"
    STATIC_LIB = "static-lib"


EmbedWeights = Annotated[bool, typer.Option("--embed-weights", help="Link the weights in, so that no file is needed.")]


def compile_command(
    model: Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="NAME.coil", help="Where to write.")] = None,
    target: Target = "native",
    dynamic: Dynamic = None,
    lengths: Lengths = None,
    state: States = None,
    entries: Entries = None,
    algorithm: Algorithm = None,
    precision: Precision = PrecisionName.FP32,
    quantize: Quantize = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, help="Longest sequence in prefill and step of a model with attention: the size of its caches."
        ),
    ] = None,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A tokenizer.json to put into the artifact, for 'coilc generate'."),
    ] = None,
    weights: Annotated[Optional[Path], typer.Option(help="Safetensors file with the weights of IR text.")] = None,  # noqa: UP045
    emit: Annotated[
        Optional[Emit],  # noqa: UP045
        typer.Option(help="Also write what `coilc bundle --emit` writes, beside the artifact."),
    ] = None,
    embed_weights: EmbedWeights = False,
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
        program = load_program(model, dynamic or (), weights, lengths=lengths, states=state or (), need_weights=True)
        chosen = tuple(entries.split(",")) if entries else None
        compile(
            program, path, target=target, entries=chosen, algorithm=algorithm, context=context,
            precision=precision.value,
            quantize=quantize and quantize.value, tokenizer=tokenizer, progress=progress,
        )  # fmt: skip
        if emit:
            emit_from(path, default_emission(path, emit), emit, embed_weights, progress)
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
        Path | None, typer.Option("--output", "-o", metavar="NAME.tar.gz | FOLDER", help="Where to write.")
    ] = None,
    emit: Annotated[
        Emit, typer.Option(help="An archive with a static program, or a folder with a library.")
    ] = Emit.PROGRAM,
    embed_weights: EmbedWeights = False,
    json: Json = False,
) -> None:
    """Pack an artifact for a device: a static program, coil-run, and the weights.

    The device needs no Python, no libraries and no compiler. The artifact's target decides which machines it runs on.
    With --emit static-lib: a folder with libNAME.a, coil.h and the weights, for linking into other programs.
    """
    began = time.perf_counter()
    with Stages() as progress:
        path = emit_from(artifact, output or default_emission(artifact, emit, here=True), emit, embed_weights, progress)
    seconds, total = time.perf_counter() - began, folder_size(path) if path.is_dir() else path.stat().st_size
    if json:
        emit_json({"bundle": str(path), "seconds": seconds, "bytes": total})
    else:
        console().print(f"{path}: {show_bytes(total)}; bundled in {seconds:.1f} s", markup=False)


def emit_from(artifact: Path, output: Path, emit: Emit, embed_weights: bool, progress: Stages) -> Path:
    """Write a program's archive or a static library's folder."""
    from coilc.codegen.bundle import bundle, write_static_library

    write = bundle if emit is Emit.PROGRAM else write_static_library
    return write(artifact, output, embed_weights, progress)


def default_emission(artifact: Path, emit: Emit, here: bool = False) -> Path:
    """``m.coil`` -> ``m.tar.gz`` or ``m-lib``, beside the artifact or in the current folder."""
    path = artifact.resolve()
    return (Path() if here else artifact.parent) / (path.stem + (".tar.gz" if emit is Emit.PROGRAM else "-lib"))
