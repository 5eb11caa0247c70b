"""From an artifact to an archive for a device: one static program and its weights, and nothing else to install."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import coilc.runtime
from coilc.ir import InputError
from coilc.runtime.artifact import KERNELS, PLAN, WEIGHTS, check_files, read_manifest
from coilc.runtime.errors import ArtifactError

from .link import NATIVE, link_program

DEVICE = Path(coilc.runtime.__file__).parent / "device"
PROGRAM = "coil-run"
README = "./coil-run describe says what this model takes; ./coil-run --help lists the commands.\n"


def bundle(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str],
    progress: Callable[[str, float | None], None] | None = None,
) -> Path:
    """Write ``output``, an archive of a folder with the program, the weights and one line about them.

    Args:
        artifact: what ``compile`` wrote, for this machine or another one.
        output: a path that ends in ``.tar.gz``; it appears complete or not at all.
        progress: called with each stage's name when it starts.

    Returns:
        ``output``.

    Raises:
        InputError: the output has another kind of name.
        ArtifactError: the artifact is damaged, or older than bundles.
        CoilError: linking failed.
    """
    folder, path, report = Path(artifact), Path(output), progress or (lambda stage, seconds: None)
    if not path.name.endswith(".tar.gz"):
        raise InputError(f"{path}: a bundle's name ends in .tar.gz")
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if PLAN not in manifest["files"]:
        raise ArtifactError(f"'{folder}' lacks {PLAN}, which a bundle is linked from: recompile it")
    with TemporaryDirectory(prefix="coilc-") as scratch:
        program = Path(scratch) / PROGRAM
        report("link", None)
        link_device_program(folder, manifest, program)
        report("pack", None)
        _write_archive(path, folder.stem, {PROGRAM: program, WEIGHTS: folder / WEIGHTS})
    return path


def link_device_program(folder: Path, manifest: Mapping[str, Any], output: Path) -> None:
    """Link the kernels and the plan of an artifact with ``coil-run`` into ``output``, a static executable."""
    machine = output.with_suffix(".machine.c")
    machine.write_text(_machine_source(manifest["target"]))
    sources = [folder / PLAN, machine, *sorted(NATIVE.glob("*.c")), *sorted(DEVICE.glob("*.c"))]
    objects = [folder / KERNELS] if KERNELS in manifest["files"] else []
    link_program([*sources, *objects], output, manifest["target"]["triple"], [NATIVE, DEVICE])


def _machine_source(target: Mapping[str, Any]) -> str:
    features = "".join(f'"{feature}", ' for feature in target["features"])
    return (
        f'#include <stddef.h>\n\n#include "device.h"\n\nconst char coil_target[] = "{target["name"]}";\n'
        f"const char *const coil_features[] = {{{features}NULL}};\n"
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
