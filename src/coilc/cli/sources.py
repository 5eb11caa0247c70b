"""MODEL on the command line: what it may be, and how it becomes a program or a PyTorch module with example inputs.

====================  ================================================================================
``file.py:function``  a function returning ``(module, args[, kwargs[, dynamic_shapes]])``; the file may hold
                      ``EXPORT``, a dict of further arguments of ``coilc.export``: ``lengths``, ``states``, ``initial``
``model.pt2``         what ``torch.export.save`` wrote
``graph.py``          IR text
``name.coil``         an artifact: its IR text and weights
====================  ================================================================================
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coilc.ir import Graph, InputError, Location, Module, TensorType, parse_graphs
from coilc.ir.states import declare_states

from .arrays import read_inputs

DYNAMIC = re.compile(r"(?P<name>[A-Za-z_]\w*)\.(?P<axis>\d+)=(?P<dim>[A-Za-z_]\w*(:\d+\.\.\d*)?)")
LENGTHS = re.compile(r"((?P<name>[A-Za-z_]\w*)=)?(?P<first>\d+),(?P<second>\d+)")
KINDS = "a .pt2 file, IR text (.py), a .coil folder, or file.py:function"


@dataclass(frozen=True)
class Example:
    """A PyTorch module with the inputs to trace and compare it on."""

    module: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_dynamic(options: Sequence[str]) -> dict[str, dict[int, str]]:
    """``ids.1=L:1..8192`` options as dynamic shapes: ``{"ids": {1: "L:1..8192"}}``.

    Raises:
        InputError: an option has another form.
    """
    shapes: dict[str, dict[int, str]] = {}
    for option in options:
        match = DYNAMIC.fullmatch(option)
        if not match:
            raise InputError(
                f"--dynamic {option}: write INPUT.AXIS=NAME or INPUT.AXIS=NAME:LOW..HIGH, as in ids.1=L:1..8192"
            )
        shapes.setdefault(match["name"], {})[int(match["axis"])] = match["dim"]
    return shapes


def parse_lengths(option: str | None) -> dict[str, Any]:
    """A ``--lengths L=7,11`` or ``--lengths 7,11`` option as arguments of ``coilc.export``.

    Raises:
        InputError: the option has another form.
    """
    if option is None:
        return {}
    match = LENGTHS.fullmatch(option)
    if not match:
        raise InputError(f"--lengths {option}: write NAME=A,B with two lengths, as in L=7,11")
    pair = (int(match["first"]), int(match["second"]))
    return {"lengths": {match["name"]: pair} if match["name"] else pair}


def parse_states(options: Sequence[str]) -> dict[str, str]:
    """``h=h_next`` options as pairs of an input and the output that takes its place in the next call.

    Raises:
        InputError: an option has another form.
    """
    pairs = [option.partition("=") for option in options]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise InputError(f"--state {wrong[0]}: write INPUT=OUTPUT, as in h=h_next")
    return {before: after for before, _, after in pairs}


def dynamic_shapes(given: Any, options: Sequence[str]) -> Any:
    """Merge ``--dynamic`` options into the dynamic shapes that a function returned; options win."""
    added = parse_dynamic(options)
    if added and not isinstance(given or {}, Mapping):
        raise InputError("--dynamic needs dynamic shapes by input name; the function returned them by position")
    if not added:
        return given
    merged = dict(given or {})
    for name, axes in added.items():
        before = merged.get(name) or {}
        if not isinstance(before, Mapping):
            raise InputError(f"--dynamic {name}: the function already gives the dims of '{name}' in another form")
        merged[name] = {**before, **axes}
    return merged


def load_example(spec: str) -> Example:
    """Run ``file.py:function``.

    Raises:
        InputError: no such file or function, it raised, or it returned something else.
    """
    path, _, name = spec.rpartition(":")
    function, options = _function(Path(path), name)
    returned = _run_user_code(function, spec)
    if not isinstance(returned, tuple) or not 2 <= len(returned) <= 4:
        raise InputError(
            f"{spec} must return (module, args[, kwargs[, dynamic_shapes]]), not {type(returned).__name__}"
        )
    module, args, *rest = returned
    if not callable(module) or not isinstance(args, tuple):
        raise InputError(f"{spec} must return a module and a tuple of arguments first")
    kwargs = (rest[0] if rest else None) or {}
    return Example(module, args, kwargs, rest[1] if len(rest) > 1 else None, options)


def _function(path: Path, name: str) -> tuple[Callable[[], Any], Mapping[str, Any]]:
    """The function, and the file's ``EXPORT``."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise InputError(f"{path}: not a Python file; file.py:function needs one")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    loader = found.loader
    _run_user_code(lambda: loader.exec_module(module), str(path))
    function = getattr(module, name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == path.stem]
        raise InputError(f"{path} has no function '{name}'" + (f"; it has {', '.join(names)}" if names else ""))
    options = getattr(module, "EXPORT", {})
    if not isinstance(options, Mapping) or set(options) - {"lengths", "states", "initial"}:
        raise InputError(
            f'{path}: EXPORT must be a dict of further arguments of coilc.export, such as {{"lengths": (7, 11)}}'
        )
    return function, options


def _run_user_code(call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = Location(frame.filename, frame.lineno or 0)
        raise InputError(f"{what} raised {type(error).__name__}: {error}", where) from error


def load_exported(path: Path, inputs: Sequence[str]) -> Example:
    """An exported program with ``name=file.npy`` options for its inputs.

    Raises:
        InputError: no such program, an input that is missing, or one that it does not take.
    """
    import torch

    from coilc.frontend.torch_export import import_program, load_program

    program = load_program(path)
    names = [value.node.attrs["name"] for value in import_program(program).entries["main"].inputs]
    arrays = read_inputs(inputs)
    if set(arrays) != set(names):
        raise InputError(f"{path} takes the inputs {', '.join(names)}; give each as --input NAME=FILE.npy")
    leaves = [torch.from_numpy(arrays[name]) for name in names]
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return Example(program, args, kwargs)


def is_example(spec: str) -> bool:
    """Whether MODEL has the form ``file.py:function``."""
    return re.search(r"\.py:\w+$", spec) is not None


def load_program(
    spec: str,
    dynamic: Sequence[str] = (),
    weights: Path | None = None,
    *,
    lengths: str | None = None,
    states: Sequence[str] = (),
    need_weights: bool = False,
) -> Module:
    """MODEL as an IR module, imported but not optimised.

    Args:
        dynamic, lengths, states: the options ``--dynamic``, ``--lengths`` and ``--state``.
        weights: safetensors file with the weights of IR text.
        need_weights: refuse IR text whose weights are not there; otherwise they are zeros.

    Raises:
        InputError: MODEL does not exist or has none of the known forms.
        UnsupportedError: the model uses something that coilc cannot represent.
    """
    pairs = parse_states(states)
    program = _load(spec, dynamic, weights, lengths, need_weights)
    return program.map(lambda graph: declare_states(graph, pairs))


def _load(spec: str, dynamic: Sequence[str], weights: Path | None, lengths: str | None, need_weights: bool) -> Module:
    if is_example(spec):
        from coilc.exporting import export

        example = load_example(spec)
        shapes = dynamic_shapes(example.dynamic_shapes, dynamic)
        options = {**example.options, **parse_lengths(lengths)}
        return export(example.module, example.args, dict(example.kwargs), dynamic_shapes=shapes, **options)
    path = Path(spec)
    if not path.exists():
        raise InputError(f"{spec}: no such file; MODEL is {KINDS}")
    if dynamic or lengths:
        option = "--dynamic" if dynamic else "--lengths"
        raise InputError(
            f"{option} applies while exporting, so only to file.py:function; other models have their dims already"
        )
    if path.suffix in (".pt2", ".onnx"):
        from coilc.frontend.torch_export import import_program

        return import_program(path)
    program = load_text(path, weights)
    if need_weights and program.weights and not path.is_dir() and not weights:
        raise InputError(
            f"{path} names weights but IR text holds no numbers; give them with --weights FILE.safetensors"
        )
    return program


def load_text(path: Path, weights: Path | None = None) -> Module:
    """IR text, or the text inside an artifact, with the weights beside it if there are any."""
    if path.is_dir():
        path, weights = path / "graph.py", weights or path / "weights.safetensors"
    if path.suffix not in (".py", ".txt") or not path.is_file():
        raise InputError(f"{path}: not a model; MODEL is {KINDS}")
    graphs = parse_graphs(path.read_text())
    if not graphs:
        raise InputError(f"{path}: no graph in it; for a Python function write {path}:function")
    return Module({graph.name: graph for graph in graphs}, _weights(graphs, weights))


def _weights(graphs: Sequence[Graph], path: Path | None) -> dict[str, np.ndarray]:
    """The arrays that the graphs name; zeros where there is no file (enough for passes, which never look inside)."""
    needed = {n.attrs["name"]: n.types[0] for g in graphs for n in g.nodes if n.op.name == "weight"}
    stored: dict[str, np.ndarray] = {}
    if path and path.is_file():
        from safetensors.numpy import load_file

        stored = load_file(path)
    missing = sorted(set(needed) - set(stored))
    if missing and path:
        raise InputError(
            f"{path}: weight '{missing[0]}' is missing" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
        )
    return {name: stored[name] if path else _zeros(type_) for name, type_ in needed.items()}


def _zeros(type_: TensorType) -> np.ndarray:
    return np.zeros([int(str(dim)) for dim in type_.dims], type_.dtype.numpy)
