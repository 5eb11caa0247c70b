"""An artifact on disk: the names of its files, its manifest, and every check that comes before its code is loaded.

The format is documented in ``docs/artifact.md``; ``codegen/artifact.py`` writes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .manifest import MalformedError, check_manifest

FORMAT_VERSION = 1
MANIFEST, LIBRARY, WEIGHTS, GRAPH = "manifest.json", "code.so", "weights.safetensors", "graph.py"
PLAN, KERNELS = "plan.c", "kernels.o"  # what the library was linked from, and a static program can be
DEVICE_CODE = "kernels.fatbin"  # the same, of a target with a device
TOKENIZER = "tokenizer.json"  # optional: how text becomes the model's tokens, in the format of the package 'tokenizers'
KINDS = ("cpu", "cuda")  # of targets: what runs the kernels
LARGEST_MANIFEST = 1 << 26
_UNSEALED = b"0" * 64


@dataclass(frozen=True)
class Artifact:
    """A folder whose files are complete and whose code can run on this machine."""

    path: Path
    manifest: Mapping[str, Any]


def read_artifact(path: str | os.PathLike[str], verify: bool = True) -> Artifact:
    """Read and check an artifact without loading its code.

    Args:
        verify: also compare the sha256 of every file (about 1 s per GB); sizes are always compared.

    Raises:
        ArtifactError: naming the file, what is wrong with it, and what to do.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name in (LIBRARY, WEIGHTS):  # what is loaded must be among what is verified
        if name not in manifest["files"]:
            raise _damaged(folder / MANIFEST, f"its 'files' lack {name}")
    check_files(folder, manifest, verify)
    _check_machine(folder, manifest["target"])
    return Artifact(folder, manifest)


def check_files(folder: Path, manifest: Mapping[str, Any], verify: bool = True) -> None:
    """Compare every file with the manifest: its size, and with ``verify`` its sha256.

    Raises:
        ArtifactError: naming the first file that differs.
    """
    for name, expected in manifest["files"].items():
        _check_file(folder / name, expected, verify)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its version and its seal checked.

    Raises:
        ArtifactError: the folder is not an artifact, is newer than this program, or its manifest is damaged.
    """
    try:
        data = _read(folder / MANIFEST)
    except OSError as error:
        found = "there is no such folder" if not folder.exists() else f"{MANIFEST} cannot be read ({error.strerror})"
        raise ArtifactError(
            f"'{folder}' is not an artifact: {found}; give the folder that 'coilc compile' wrote"
        ) from None
    try:
        manifest = json.loads(data, object_pairs_hook=_unique)
        version, recorded = manifest["format"], str(manifest["seal"]).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(folder / MANIFEST, "its text cannot be read") from None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"'{folder}' has format {version}, this coilc reads formats up to {FORMAT_VERSION}: upgrade coilc"
        )
    if version != FORMAT_VERSION or len(recorded) != len(_UNSEALED) or seal_of(data, recorded) != recorded:
        raise _damaged(folder / MANIFEST, "its content does not match its seal")
    try:
        check_manifest(manifest)
    except MalformedError as error:
        raise _damaged(folder / MANIFEST, str(error)) from None
    return dict(manifest)


def _read(path: Path) -> bytes:
    """A small regular file; a pipe would never end."""
    if not path.is_file():
        path.stat()
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as file:
        data = file.read(LARGEST_MANIFEST + 1)
    if len(data) > LARGEST_MANIFEST:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST_MANIFEST} bytes")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two programs that read a name twice may each believe another one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's text; its last field is the sha256 of the text with that field zeroed."""
    text = json.dumps({**manifest, "seal": _UNSEALED.decode()}, indent=1).encode()
    head, _, tail = text.rpartition(_UNSEALED)
    return head + hashlib.sha256(text).hexdigest().encode() + tail


def seal_of(data: bytes, recorded: bytes) -> bytes:
    """The seal that a manifest with this text should carry."""
    head, _, tail = data.rpartition(recorded)
    return hashlib.sha256(head + _UNSEALED + tail).hexdigest().encode()


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read in pieces so that large weights never sit in memory."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _check_file(path: Path, expected: Mapping[str, Any], verify: bool) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise _damaged(path, "it is not a file")
        if size != expected["bytes"]:
            raise _damaged(path, f"it has {size} bytes instead of {expected['bytes']}")
        if verify and sha256_of(path) != expected["sha256"]:
            raise _damaged(path, "its content does not match its sha256 in the manifest")
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror})") from None


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"'{path}' is damaged: {what}; copy the artifact again or recompile it")


def _check_machine(folder: Path, target: Mapping[str, Any]) -> None:
    needed = target["triple"].split("-")[0]
    machine = os.uname().machine
    if machine != needed:
        raise ArtifactError(
            f"'{folder}' was compiled for {needed}, this machine is {machine}: recompile it with --target native here"
        )
    kind = target.get("kind", "cpu")
    if kind not in KINDS:
        raise ArtifactError(
            f"'{folder}' runs on a device of kind '{kind}', this coilc knows {', '.join(KINDS)}: upgrade coilc"
        )
    missing = [name for name in target["features"] if name not in cpu_features()]
    if missing:
        raise ArtifactError(
            f"'{folder}' needs the CPU feature{'s' * (len(missing) > 1)} {', '.join(missing)}, which this CPU lacks: "
            f"recompile it for an older target than '{target['name']}'"
        )


def cpu_features() -> frozenset[str]:
    """Feature names of this CPU as the kernel reports them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
