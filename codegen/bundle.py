"""From an artifact to what other machines and programs use: an archive with one program, or a static library."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import coilc.runtime
from coilc.ir import InputError
from coilc.runtime.artifact import DEVICE_CODE, KERNELS, PLAN, TOKENIZER, WEIGHTS, check_files, read_manifest
from coilc.runtime.errors import ArtifactError

from .emit_plan import DEVICE_CODE as CODE_SYMBOL
from .link import NATIVE, embed, link_archive, link_program, runtime_sources

DEVICE = Path(coilc.runtime.__file__).parent / "device"
PROGRAM = "coil-run"
HEADER = "coil.h"
EMBEDDED = "-DCOIL_EMBEDDED_WEIGHTS"
Progress = Callable[[str, float | None], None]
README = "./coil-run describe says what this model takes; ./coil-run --help lists the commands.\n"


def bundle(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str],
    embed_weights: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``output``, an archive of a folder with the program, the weights and one line about them.

    Args:
        artifact: what ``compile`` wrote, for this machine or another one.
        output: a path that ends in ``.tar.gz``; it appears complete or not at all.
        embed_weights: put the weights into the program, which then opens no file.
        progress: called with each stage's name when it starts.

    Returns:
        ``output``.

    Raises:
        InputError: the output has another kind of name, or cannot be written.
        ArtifactError: the artifact is damaged, or older than bundles.
        CoilError: linking failed.
    """
    folder, path, report = Path(artifact), Path(output), progress or (lambda stage, seconds: None)
    if not path.name.endswith(".tar.gz"):
        raise InputError(f"{path}: a bundle's name ends in .tar.gz")
    if not path.parent.is_dir():
        raise InputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    manifest = _checked_manifest(folder)
    with TemporaryDirectory(prefix="coilc-") as scratch:
        program = Path(scratch) / PROGRAM
        report("link", None)
        link_device_program(folder, manifest, program, embed_weights)
        report("pack", None)
        weights = {} if embed_weights else {WEIGHTS: folder / WEIGHTS}
        try:
            _write_archive(path, folder.stem, {PROGRAM: program, **weights})
        except OSError as error:
            raise InputError(f"cannot write '{path}': {error.strerror}") from None
    return path


def write_static_library(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str],
    embed_weights: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the folder ``output`` with ``libNAME.a``, ``coil.h`` and the weights, for linking into other programs.

    Args:
        artifact: as for ``bundle``; its name is the library's.
        output: a folder; files in it of the same names are replaced.
        embed_weights: put the weights into the library; ``coil_open`` then needs neither path nor memory.
        progress: as for ``bundle``.

    Returns:
        ``output``.

    Raises:
        ArtifactError: as for ``bundle``.
        InputError: the folder cannot be written.
        CoilError: compiling failed.
    """
    folder, place, report = Path(artifact), Path(output), progress or (lambda stage, seconds: None)
    manifest = _checked_manifest(folder)
    report("archive", None)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".coilc-", dir=place) as scratch:
            staging = Path(scratch)
            inputs, flags = _model_inputs(folder, manifest, staging, embed_weights)
            library = staging / f"lib{folder.resolve().stem}.a"
            link_archive(inputs, library, manifest["target"]["triple"], [NATIVE], flags)
            shutil.copy(NATIVE / HEADER, staging)
            if not embed_weights:
                shutil.copy(folder / WEIGHTS, staging)
            for path in (library, staging / HEADER, *([] if embed_weights else [staging / WEIGHTS])):
                os.replace(path, place / path.name)
    except OSError as error:
        raise InputError(f"cannot write '{place}': {error.strerror}") from None
    return place


def link_device_program(folder: Path, manifest: Mapping[str, Any], output: Path, embed_weights: bool = False) -> None:
    """Link the kernels and the plan of an artifact with ``coil-run`` into ``output``, an executable."""
    with TemporaryDirectory(prefix="coilc-") as scratch:
        inputs, flags = _model_inputs(folder, manifest, Path(scratch), embed_weights)
        machine = Path(scratch) / "machine.c"
        machine.write_text(_machine_source(manifest["target"], embed_weights, (folder / TOKENIZER).is_file()))
        sources = [machine, *sorted(DEVICE.glob("*.c")), *inputs]
        target = manifest["target"]
        link_program(sources, output, target["triple"], [NATIVE, DEVICE], flags, kind=target.get("kind", "cpu"))


def _checked_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if PLAN not in manifest["files"]:
        raise ArtifactError(f"'{folder}' lacks {PLAN}, which a bundle is linked from: recompile it")
    return manifest


def _model_inputs(
    folder: Path, manifest: Mapping[str, Any], scratch: Path, embed_weights: bool
) -> tuple[list[Path], list[str]]:
    """Plan, runtime, kernels and perhaps weights, and the flags that they are compiled with."""
    files = manifest["files"]
    inputs = [folder / PLAN, *runtime_sources(manifest["target"].get("kind", "cpu"))]
    inputs += [folder / KERNELS] if KERNELS in files else []
    if DEVICE_CODE in files:
        inputs.append(embed(CODE_SYMBOL, folder / DEVICE_CODE, files[DEVICE_CODE]["sha256"], scratch))
    if not embed_weights:
        return inputs, []
    weights = embed("coil_weights", folder / WEIGHTS, files[WEIGHTS]["sha256"], scratch)
    return [*inputs, weights], [EMBEDDED]


def _machine_source(target: Mapping[str, Any], embedded: bool, tokenizer: bool) -> str:
    features = "".join(f'"{feature}", ' for feature in target["features"])
    return (
        f'#include <stddef.h>\n\n#include "machine.h"\n\nconst char coil_target[] = "{target["name"]}";\n'
        f"const char *const coil_features[] = {{{features}NULL}};\n"
        f"const bool coil_embedded = {int(embedded)};\nconst bool coil_tokenizer = {int(tokenizer)};\n"
    )


def _write_archive(path: Path, folder: str, files: Mapping[str, Path]) -> None:
    """The same input gives the same bytes: no times, no owners. The weights hardly compress, so little is tried."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, f"{folder}/README", BytesIO(README.encode()), len(README), 0o644)
                for name, file in files.items():
                    with file.open("rb") as content:
                        mode = 0o755 if name == PROGRAM else 0o644
                        _add(archive, f"{folder}/{name}", content, file.stat().st_size, mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO, size: int, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    archive.addfile(entry, content)
