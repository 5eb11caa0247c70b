"""Writing an artifact: the manifest, and a folder that appears complete or not at all.

``runtime/artifact.py`` holds the names and the format version that reader and writer share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coilc.ir import Dim, InputError, TensorType
from coilc.runtime.artifact import FORMAT_VERSION, MANIFEST, seal, sha256_of

from .plan import UNBOUNDED, Call, EntryPlan, Plan, Symbol
from .target import Target
from .weights import Layout


@contextmanager
def new_artifact(path: Path) -> Iterator[Path]:
    """A folder to fill, beside ``path``, which takes the place of ``path`` when the block ends without an error.

    Raises:
        InputError: ``path`` exists and is not an artifact, or its parent cannot be written.
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise InputError(f"'{path}' exists and is not an artifact, so it is left alone; choose another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write beside '{path}': {error.strerror}") from None
    try:
        content = staging / "new"
        content.mkdir()
        yield content
        _exchange(content, path, staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(content: Path, path: Path, old: Path) -> None:
    """Put ``content`` at ``path``; what was there moves to ``old``, and back if that fails."""
    if not path.exists():
        os.replace(content, path)
        return
    os.replace(path, old)
    try:
        os.replace(content, path)
    except OSError:
        os.replace(old, path)
        raise


def write_manifest(folder: Path, fields: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Write the manifest over the files now in ``folder``.

    Args:
        fields: everything but the format version, the file table and the seal.
        known: sha256 of files that was computed while they were written.
    """
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": known.get(file.name) or sha256_of(file)}
        for file in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_bytes(seal({"format": FORMAT_VERSION, **fields, "files": files}))


def describe_plan(plan: Plan, layout: Layout, scratch_bytes: int) -> dict[str, Any]:
    """The manifest's fields about what the artifact computes and the memory it needs."""
    states = next((entry for entry in plan.entries if entry.states), None)
    return {
        "states": describe_states(states) if states else [],
        "entries": {entry.name: describe_entry(entry) for entry in plan.entries},
        "kernels": list(plan.kernels),
        "weights": {"count": len(plan.weights), "bytes": layout.total_bytes if plan.weights else 0},
        "scratch_bytes_per_thread": scratch_bytes,
    }


def describe_target(target: Target, driver: int) -> dict[str, Any]:
    """What the artifact needs of a machine; ``driver`` is that of ``BuildInfo``."""
    found = {
        "name": target.name,
        "kind": target.kind,
        "triple": target.triple,
        "features": sorted(target.features),
    }
    if target.device is None:
        return found
    oldest = f"{driver // 1000}.{driver % 1000 // 10}"
    return found | {"device": {"arch": target.device.arch, "exact": target.device.exact, "driver": oldest}}


def describe_states(entry: EntryPlan) -> list[dict[str, Any]]:
    """What the model remembers between calls."""
    return [
        {"name": name, **_type(type_), "bytes": _dim(type_.bytes), "kept": number in entry.kept}
        for number, (name, type_) in enumerate(entry.state_types)
    ]


def state_identity(plan: Plan, weights_digest: str) -> str:
    """What a saved state depends on: the weights, and the states in their order."""
    states = [describe_states(entry) for entry in plan.entries if entry.states][:1]
    return hashlib.sha256(json.dumps([weights_digest, states]).encode()).hexdigest()


def describe_entry(entry: EntryPlan) -> dict[str, Any]:
    """One entry of the manifest: signature, arena, calls."""
    slots = [[str(size) for size in sizes] for sizes in entry.slots]
    return {
        "symbols": [_symbol(s) for s in entry.symbols],
        "inputs": [{"name": name, **_type(type_)} for name, type_ in entry.inputs],
        "outputs": [{"name": name, **_type(type_)} for name, type_ in entry.outputs],
        "states": [{"input": input, "output": output} for input, output in entry.states],
        "arena": {"formula": _formula(slots), "slots": slots},
        "calls": [_call(call) for call in entry.calls],
    }


def tool_versions() -> dict[str, str]:
    """Versions of what made the artifact."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("coilc", "apache-tvm", "torch", "ziglang", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _formula(slots: list[list[str]]) -> str:
    """Bytes of the arena as an expression; ``up64`` rounds up to a multiple of 64."""
    sizes = [f"max({', '.join(s)})" if len(s) > 1 else s[0] for s in slots]
    return " + ".join(f"up64({size})" for size in sizes) or "0"


def _symbol(symbol: Symbol) -> dict[str, Any]:
    return {
        "name": symbol.name,
        "low": symbol.low,
        "high": None if symbol.high == UNBOUNDED else symbol.high,
        "input": symbol.input,
        "axis": symbol.axis,
        "scale": symbol.scale,
        "offset": symbol.offset,
    }


def _call(call: Call) -> dict[str, Any]:
    results = []
    for result in call.results:
        place = result.location
        named = {"source": place.source, "scope": place.scope} if place else {}
        results.append({**_type(result.type), **{key: text for key, text in named.items() if text}})
    return {"kernel": call.kernel, "results": results}


def _type(type_: TensorType) -> dict[str, Any]:
    return {"dtype": type_.dtype.name, "dims": [_dim(dim) for dim in type_.dims]}


def _dim(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)
