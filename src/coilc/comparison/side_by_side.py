"""``compare``: run a PyTorch model and its artifact on the same inputs and measure the difference."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from coilc.caches import Opened, is_cache, opened, tensor_names, without
from coilc.exporting import Lengths, trace_example
from coilc.frontend.locations import location_of
from coilc.frontend.torch_export import evaluating, import_program, lower
from coilc.ir import interpret
from coilc.runtime import InputError, Model, Traced, load

from .eager import observe_values, tensors_in, to_numpy
from .metrics import difference, is_float, tolerance_for
from .report import Report, Row, Speed

VALUES_AT_ONCE = 1 << 30  # bytes of intermediate values held while comparing; more are compared in several runs
LONGEST_TIMING = 60.0  # seconds; slow models get fewer timed runs, but at least three

Progress = Callable[[str], None]


def compare(
    model: torch.nn.Module | ExportedProgram,
    artifact: str | os.PathLike[str] | Model,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    lengths: Lengths | None = None,
    entry: str = "main",
    tolerance: float | None = None,
    layers: bool = True,
    float64: bool = False,
    runs: int = 10,
    threads: int | None = None,
    name: str = "",
    progress: Progress = lambda stage: None,
) -> Report:
    """Compare an artifact with eager PyTorch on the given inputs.

    Args:
        model: the module (run as it is, in its current mode) or exported program that the artifact was compiled from.
        args, kwargs: as for the module; transformers' cache objects are copied first, and filled by a call if they are empty.
        dynamic_shapes, lengths: as given to :func:`coilc.export`, so that the values inside the model get the same names.
        tolerance: relative Frobenius error allowed; by dtype and what the artifact stores unless given, see
            :data:`TOLERANCE`.
        layers: also compare every value inside the model that the artifact computes.
        float64: also evaluate the model in float64, step by step and slowly, and judge an output that is outside its
            tolerance by how far both sides are from that: twice PyTorch's own error is still right.
        runs: timed runs of each side, alternately; 0 measures no time.
        threads: of both sides.
        name: what the report calls the model.

    Raises:
        InputError: the artifact has another signature than the model.
        ArtifactError: the artifact cannot be loaded.
    """
    loaded = artifact if isinstance(artifact, Model) else load(artifact, threads)
    signature = signature_of(loaded, entry)
    with _opened(model, args, _taken(kwargs or {}, signature), dynamic_shapes) as call:
        comparison = _Comparison(model, loaded, args, call.kwargs, entry, signature, tolerance, name, progress)
        return comparison.report(call.dynamic_shapes, lengths, layers, float64, runs)


def signature_of(artifact: Model, entry: str) -> Mapping[str, Any]:
    """Inputs and outputs of an entry, as the artifact describes them.

    Raises:
        InputError: there is no such entry.
    """
    entries: Mapping[str, Any] = artifact.describe()["entries"]
    if entry not in entries:
        raise InputError(f"the artifact has no entry '{entry}'; it has {', '.join(entries)}")
    return entries[entry]


def _taken(kwargs: Mapping[str, Any], signature: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments without the caches that the entry was traced without, which are its start."""
    inputs = [tensor["name"] for tensor in signature["inputs"]]
    left_out = [n for n, x in kwargs.items() if is_cache(x) and not any(i.startswith(f"{n}_") for i in inputs)]
    if filled := [name for name in left_out if tensor_names(kwargs[name])]:
        raise InputError(f"the entry starts a sequence and takes no '{filled[0]}'; compare it with an empty one")
    return without(kwargs, left_out) if left_out else kwargs


def _opened(
    model: torch.nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> AbstractContextManager[Opened]:
    """The call as ``export`` traces it, with the tensors of caches; those of an exported program are fixed in it."""
    if isinstance(model, ExportedProgram):
        return nullcontext(Opened(dict(kwargs), dynamic_shapes))
    return opened(model, args, kwargs, dynamic_shapes)


class _Comparison:
    """One model, one artifact, one set of inputs."""

    def __init__(
        self,
        model: torch.nn.Module | ExportedProgram,
        artifact: Model,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        entry: str,
        signature: Mapping[str, Any],
        tolerance: float | None,
        name: str,
        progress: Progress,
    ) -> None:
        self.artifact, self.entry, self.signature = artifact, entry, signature
        self.model, self.args, self.kwargs = model, args, kwargs
        self.tolerance, self.progress = tolerance, progress
        self.runnable = model.module() if isinstance(model, ExportedProgram) else model
        self.name = name or type(model).__name__
        self.manifest = self.artifact.describe()
        self.inputs = self._named_inputs()

    def report(self, dynamic_shapes: Any, lengths: Lengths | None, layers: bool, float64: bool, runs: int) -> Report:
        program = self._program(dynamic_shapes, lengths) if layers or float64 else None
        exact: Mapping[str, np.ndarray] = {}
        if program and float64:
            self.progress("evaluate in float64")
            exact = self.run_wide(program)
        self.progress("compare outputs")
        outputs = tuple(self.output_rows(exact))
        inside: tuple[Row, ...] = ()
        if program and layers:
            self.progress("compare values inside the model")
            inside = tuple(self.layer_rows(program))
        speed = None
        if runs:
            self.progress("measure speed")
            speed = self.measure_speed(runs)
        return Report(
            model=self.name,
            artifact=self.artifact.path.name,
            target=self.manifest["target"]["name"],
            entry=self.entry,
            inputs={n: _shown(a) for n, a in self.inputs.items()},
            outputs=outputs,
            layers=inside,
            speed=speed,
            sizes=self.sizes(),
        )

    def _named_inputs(self) -> dict[str, np.ndarray]:
        """The tensors of args and kwargs under the names of the entry's inputs, which are in the same order."""
        arrays = [to_numpy(tensor) for tensor in tensors_in((self.args, dict(self.kwargs)))]
        names = [tensor["name"] for tensor in self.signature["inputs"]]
        if len(arrays) != len(names):
            raise InputError(
                f"the model got {len(arrays)} tensors, the artifact takes {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, arrays, strict=True))

    # --- eager PyTorch --------------------------------------------------------------------------------------------------

    def run_eager(self) -> list[torch.Tensor]:
        """The outputs of the model as ``export`` sees it: eval mode, no gradients, no cache unless asked for."""
        args, kwargs = copy.deepcopy((self.args, dict(self.kwargs)))
        exported = isinstance(self.model, ExportedProgram)  # its mode was fixed when it was traced
        with torch.no_grad(), nullcontext() if exported else evaluating(self.runnable, kwargs):
            return tensors_in(self.runnable(*args, **kwargs))

    def _program(self, dynamic_shapes: Any, lengths: Lengths | None) -> ExportedProgram:
        if isinstance(self.model, ExportedProgram):
            return lower(self.model)
        return trace_example(self.model, self.args, self.kwargs, dynamic_shapes, lengths)

    def run_wide(self, program: ExportedProgram) -> Mapping[str, np.ndarray]:
        """The outputs of the model in float64, by the interpreter: every cast to a float type is one to float64."""
        module = import_program(program)
        (name,) = module.entries
        return interpret(module, self.inputs, name, wide=True)

    # --- differences ----------------------------------------------------------------------------------------------------

    def output_rows(self, exact: Mapping[str, np.ndarray]) -> Iterator[Row]:
        found = self.artifact.run(self.entry, self.inputs)
        expected = self.run_eager()
        if len(expected) > len(found):
            raise InputError(f"the model returns {len(expected)} tensors, the artifact {len(found)}")
        for (name, array), tensor in zip(found.items(), expected, strict=False):  # the rest is state that it updates
            row = self.row(name, array, to_numpy(tensor))
            if name in exact and row.tolerance:
                sides = (difference(side, exact[name]).relative_error for side in (to_numpy(tensor), array))
                row = replace(row, rounding=(next(sides), next(sides)))
            yield row

    def row(self, name: str, actual: np.ndarray, expected: np.ndarray, scope: str = "", place: str = "") -> Row:
        if actual.shape != expected.shape:
            raise InputError(
                f"'{name}' has shape {list(actual.shape)} in the artifact, {list(expected.shape)} in PyTorch"
            )
        measured = difference(actual, expected, name)
        allowed = tolerance_for(expected, self.tolerance, *self.stored())
        return Row(name, str(expected.dtype), expected.shape, measured, allowed, scope, place)

    def stored(self) -> list[str]:
        """The precision and the format of weights that the artifact was compiled with."""
        options = self.manifest["options"]
        return [options[name] for name in ("precision", "quantize") if options.get(name)]

    def layer_rows(self, program: ExportedProgram) -> Iterator[Row]:
        """Every value inside the model that the artifact computes under the name it has in the exported program."""
        nodes = {node.name: node for node in program.graph.nodes}
        rows: dict[str, Row] = {}
        for group in self._groups(set(nodes)):
            found = self._artifact_values(group)

            def observe(name: str, expected: np.ndarray, found: Mapping[str, np.ndarray] = found) -> None:
                actual = found[name]
                if comparable(actual, expected):
                    place = location_of(nodes[name])
                    where = (place.scope, f"{place.file}:{place.line}") if place else ("", "")
                    rows[name] = self.row(name, actual.reshape(expected.shape), expected, *where)

            observe_values(program, self.args, self.kwargs, found, observe)
        yield from (rows[name] for name in nodes if name in rows)

    def _groups(self, known: set[str]) -> Iterator[set[str]]:
        """Sources that the artifact computes, in groups whose values fit in memory together."""
        sizes: dict[str, int] = {}

        def measure(value: Traced) -> None:
            if value.result.source in known:
                sizes[value.result.source] = value.array.nbytes

        self.artifact.trace(self.inputs, measure, self.entry)
        group: set[str] = set()
        total = 0
        for source, size in sizes.items():
            if group and total + size > VALUES_AT_ONCE:
                yield group
                group, total = set(), 0
            group.add(source)
            total += size
        if group:
            yield group

    def _artifact_values(self, wanted: set[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}

        def keep(value: Traced) -> None:
            if value.result.source in wanted:
                found[value.result.source] = value.array.copy()

        self.artifact.trace(self.inputs, keep, self.entry)
        return found

    # --- speed and sizes ------------------------------------------------------------------------------------------------

    def measure_speed(self, runs: int) -> Speed:
        """Alternate the two, so that both see the same machine; the first run of each is not counted."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.artifact.threads)
        sides: tuple[Callable[[], Any], ...] = (self.run_eager, lambda: self.artifact.run(self.entry, self.inputs))
        samples: tuple[list[float], ...] = ([], [])
        began = time.perf_counter()
        try:
            for number in range(runs + 1):
                for side, times in zip(sides, samples, strict=True):
                    start = time.perf_counter()
                    side()
                    times.append(time.perf_counter() - start)
                if number >= 3 and time.perf_counter() - began > LONGEST_TIMING:
                    break
        finally:
            torch.set_num_threads(before)
        return Speed(tuple(samples[0][1:]), tuple(samples[1][1:]), self.artifact.threads)

    def sizes(self) -> dict[str, int]:
        """Bytes of weights, code and working memory of the artifact, and of the weights in PyTorch."""
        folder = Path(self.artifact.path)
        weights = {t.data_ptr(): t.nbytes for t in _state(self.model)}
        return {
            "weights": (folder / "weights.safetensors").stat().st_size,
            "code": (folder / "code.so").stat().st_size,
            "arena": self.artifact.memory_bytes,
            "eager_weights": sum(weights.values()),
        }


def comparable(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the elements of a value stand for the same numbers; floats may be stored narrower."""
    alike = actual.dtype.itemsize == expected.dtype.itemsize or (is_float(actual) and is_float(expected))
    return actual.size == expected.size and alike


def _state(model: torch.nn.Module | ExportedProgram) -> Iterator[torch.Tensor]:
    tensors = model.state_dict.values() if isinstance(model, ExportedProgram) else model.state_dict().values()
    return (tensor for tensor in tensors if isinstance(tensor, torch.Tensor))


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
