"""The form of a manifest: every field that a reader uses, its type and its range, before anything is done with it.

A seal says that a manifest is whole, not that it means well, so nothing here trusts one that is sealed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .arrays import DTYPES
from .errors import InputError
from .signature import dim_symbols, parse_dim

_Check = Callable[[Any, str], None]
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HIGHEST_RANK, LONGEST_NAME, LARGEST = 64, 200, 2**63 - 1


class MalformedError(ValueError):
    """A field that is missing or not what it should be; the message is a clause that names it."""


def check_manifest(manifest: Any) -> None:
    """Check everything that this program reads from a manifest of its own format.

    Raises:
        MalformedError: naming the first field that is wrong.
    """
    _MANIFEST(manifest, "")
    if not manifest["entries"]:
        raise MalformedError("it has no entries")
    for name, entry in manifest["entries"].items():
        _check_references(entry, f"entries.{name}")


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise MalformedError(f"its '{where[:80]}' is not {what}")


def _text(value: Any, where: str) -> None:
    _require(isinstance(value, str), where, "text")


def _name(value: Any, where: str) -> None:
    known = isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()
    _require(known, where, f"a name of up to {LONGEST_NAME} characters")


def _file_name(value: str, where: str) -> None:
    _require(bool(_FILE_NAME.fullmatch(value)), where, "the name of a file in this folder")


def _sha256(value: Any, where: str) -> None:
    _require(isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)), where, "a sha256")


def _dtype(value: Any, where: str) -> None:
    _require(isinstance(value, str) and (value in DTYPES or value == "bf16"), where, "an element type")


def _integer(low: int, high: int = LARGEST) -> _Check:
    def check(value: Any, where: str) -> None:
        _require(type(value) is int and low <= value <= high, where, f"an integer from {low} to {high}")

    return check


def _dim(value: Any, where: str) -> None:
    if not isinstance(value, str):
        _require(type(value) is int and 0 <= value <= LARGEST, where, "a dim")
        return
    try:
        parse_dim(value)
    except InputError:
        _require(False, where, "a dim")


def _optional(check: _Check) -> _Check:
    return lambda value, where: None if value is None else check(value, where)


def _list(check: _Check, longest: int = 1 << 20) -> _Check:
    def check_all(value: Any, where: str) -> None:
        _require(isinstance(value, list) and len(value) <= longest, where, "a list of a possible length")
        for i, item in enumerate(value):
            check(item, f"{where}.{i}")

    return check_all


def _map(check: _Check, check_key: _Check = _name) -> _Check:
    def check_all(value: Any, where: str) -> None:
        _require(isinstance(value, dict), where, "an object")
        for key, item in value.items():
            check_key(key, where)
            check(item, f"{where}.{key}")

    return check_all


def _object(fields: Mapping[str, _Check], optional: Mapping[str, _Check] | None = None) -> _Check:
    """Other fields are for people or for newer programs."""

    def check_all(value: Any, where: str) -> None:
        _require(isinstance(value, dict), where, "an object")
        for key, check in fields.items():
            place = f"{where}.{key}".lstrip(".")
            if key not in value:
                raise MalformedError(f"it lacks '{place}'")
            check(value[key], place)
        for key, check in (optional or {}).items():
            if key in value:
                check(value[key], f"{where}.{key}")

    return check_all


_TYPE = {"dtype": _dtype, "dims": _list(_dim, HIGHEST_RANK)}
_TENSOR = _object({"name": _name, **_TYPE})
_RESULT = _object(_TYPE, {"source": _text, "scope": _text})
_SYMBOL: Mapping[str, _Check] = {
    "name": _name,
    "low": _integer(-LARGEST),
    "high": _optional(_integer(-LARGEST)),
    "input": _integer(0),
    "axis": _integer(0),
    "scale": _integer(1),
    "offset": _integer(-LARGEST),
}
_ENTRY = _object(
    {
        "symbols": _list(_object(_SYMBOL)),
        "inputs": _list(_TENSOR),
        "outputs": _list(_TENSOR),
        "calls": _list(_object({"kernel": _text, "results": _list(_RESULT)})),
    },
    {"states": _list(_object({"input": _integer(0), "output": _integer(0)}))},
)
_DEVICE = _object({"arch": _name, "driver": _name})
_TARGET = _object({"name": _name, "triple": _name, "features": _list(_name)}, {"kind": _name, "device": _DEVICE})
_FILE = _object({"bytes": _integer(0), "sha256": _sha256})
_MANIFEST = _object({"target": _TARGET, "files": _map(_FILE, _file_name), "entries": _map(_ENTRY)})


def _check_references(entry: Mapping[str, Any], where: str) -> None:
    """Numbers that point into other lists, and names that must differ."""
    inputs, outputs, states = entry["inputs"], entry["outputs"], entry.get("states", [])
    for key in ("symbols", "inputs", "outputs"):
        names = [row["name"] for row in entry[key]]
        _require(len(set(names)) == len(names), f"{where}.{key}", "a list of different names")
    for symbol in entry["symbols"]:
        known = symbol["input"] < len(inputs) and symbol["axis"] < len(inputs[symbol["input"]]["dims"])
        _require(known and set(symbol) == set(_SYMBOL), f"{where}.symbols", "a list of axes of its inputs")
    last = range(len(inputs) - len(states), len(inputs))
    paired = sorted(state["input"] for state in states) == list(last)
    paired &= len({state["output"] for state in states}) == len(states)
    paired &= all(state["output"] < len(outputs) for state in states)
    _require(paired, f"{where}.states", "a list of the last inputs and an output for each")
    symbols = {symbol["name"] for symbol in entry["symbols"]}
    rows = [*inputs, *outputs, *(result for call in entry["calls"] for result in call["results"])]
    for dim in {dim for row in rows for dim in row["dims"]}:
        _require(dim_symbols(dim) <= symbols, where, "over its own symbols")
