"""``torch.compile(model, backend="coilc")``: each graph that dynamo captures becomes an artifact in a cache folder.

Inference only: parameters are frozen into the artifact, and a backward pass raises. When a parameter changes (an
optimiser step, ``load_state_dict``), the graph is compiled again at its next call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from coilc import __version__, settings
from coilc.codegen.compile import compile
from coilc.codegen.target import parse_target
from coilc.frontend.torch_export import export
from coilc.ir import CoilError, UnsupportedError
from coilc.runtime import ArtifactError, Model, load

Compiled = Callable[..., "list[torch.Tensor]"]


def coilc(graph: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """The backend that ``torch.compile`` calls: a graph in, a function over the same inputs out."""
    return _Compiled(graph)


Shapes = tuple[torch.Size, ...]
Run = Callable[[Sequence[torch.Tensor]], "list[torch.Tensor]"]


class _Compiled:
    """A captured graph, compiled when it is first called with real tensors.

    ``runs`` has one artifact for every shape under the key ``None``; or, where the graph's own Python fixes a dim that
    dynamo holds for dynamic (a loop over time), one artifact per combination of input shapes.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.placeholders = graph.graph.find_nodes(op="placeholder")
        self.frozen: tuple[tuple[int, int], ...] = ()
        self.runs: dict[Shapes | None, Run] = {}

    def __call__(self, *args: Any) -> list[torch.Tensor]:
        weights = [arg for arg in args if _is_weight(arg)]
        inputs = [arg for arg in args if isinstance(arg, torch.Tensor) and not _is_weight(arg)]
        state = tuple((w.data_ptr(), w._version) for w in weights)
        if state != self.frozen:
            self.runs, self.frozen = {}, state
        run = self._find(args, tuple(tensor.shape for tensor in inputs))
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*weights, *inputs)):
            return list(_InferenceOnly.apply(run, weights, *inputs, *weights))
        return run(inputs)

    def _find(self, args: Sequence[Any], shapes: Shapes) -> Run:
        found = self.runs.get(None) or self.runs.get(shapes)
        if found is not None:
            return found
        module, inputs, dynamic = _closed(self.graph, self.placeholders, args)
        if dynamic and not self.runs:
            try:
                return self.runs.setdefault(None, _runner(_artifact(module, inputs, dynamic)))
            except CoilError:
                pass  # not for every extent; if the reason is another one, it shows below
        return self.runs.setdefault(shapes, _runner(_artifact(module, inputs, None)))


def _runner(model: Model) -> Run:
    """A function from the graph's tensors, in order, to its results.

    Raises:
        UnsupportedError: the graph writes to parameters or buffers, which would not reach the module.
    """
    updated = [(f"update of '{state['name']}'", None) for state in model.describe()["states"]]
    if updated:
        raise UnsupportedError("torch.compile cannot keep what a graph writes to its module:", updated)
    names = [tensor["name"] for tensor in model.describe()["entries"]["main"]["inputs"]]

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs = model.run("main", dict(zip(names, inputs, strict=True)))
        return [value if isinstance(value, torch.Tensor) else torch.from_numpy(value) for value in outputs.values()]

    return run


def _artifact(module: GraphModule, inputs: tuple[torch.Tensor, ...], dynamic: Any) -> Model:
    """The artifact of a graph, from the cache if it is there."""
    path = Path(settings.CACHE.get()) / f"{_digest(module, inputs, dynamic)}.coil"
    try:
        return load(path)
    except ArtifactError:  # not there yet, or damaged: build it
        with torch.no_grad():
            program = export(module, inputs, {}, dynamic_shapes=dynamic)
        return load(compile(program, path))


def _is_weight(value: Any) -> bool:
    """Parameters, and buffers, which dynamo marks as living at a fixed address."""
    return isinstance(value, torch.nn.Parameter) or getattr(value, "_dynamo_static_input_type", None) is not None


def _closed(
    graph: GraphModule, placeholders: Sequence[Node], args: Sequence[Any]
) -> tuple[GraphModule, tuple[torch.Tensor, ...], Any]:
    """The graph over plain tensors alone, with those tensors and their dynamic shapes.

    Weights become buffers; symbolic integers become the sizes of the tensors that they stand for.
    """
    module = GraphModule(graph, _copy(graph))
    mirrored = module.graph.find_nodes(op="placeholder")
    sizes = {symbol: (mirrored[i], axis) for i, axis, symbol in _symbolic_axes(placeholders)}
    inputs, shapes = [], []
    for index, (node, original, arg) in enumerate(zip(mirrored, placeholders, args, strict=True)):
        if isinstance(arg, torch.Tensor) and not _is_weight(arg):
            inputs.append(arg)
            shapes.append({axis: f"d_{symbol}" for i, axis, symbol in _symbolic_axes(placeholders) if i == index})
            continue
        with module.graph.inserting_after(mirrored[-1]):
            node.replace_all_uses_with(_replacement(module, index, original, arg, sizes))
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return module, tuple(inputs), tuple(shapes) if any(shapes) else None


def _copy(graph: GraphModule) -> torch.fx.Graph:
    copied = torch.fx.Graph()
    output = copied.graph_copy(graph.graph, {})
    copied.output(output)
    return copied


def _replacement(module: GraphModule, index: int, original: Node, arg: Any, sizes: dict[str, tuple[Node, int]]) -> Node:
    if isinstance(arg, torch.Tensor):
        name = f"weight_{index}"
        module.register_buffer(name, arg.detach())
        return module.graph.get_attr(name)
    extent = original.meta["example_value"]
    symbol, known = str(extent), _known(extent)
    if known is not None:
        return module.graph.call_function(int, (known,))
    if symbol not in sizes:
        raise CoilError(f"the graph takes the number {symbol}, which is no size of an input; pass it as a tensor")
    return module.graph.call_function(torch.ops.aten.sym_size.int, sizes[symbol])


def _symbolic_axes(placeholders: Sequence[Node]) -> Iterator[tuple[int, int, str]]:
    """Index of the input, axis and symbol of every extent that is a symbol."""
    for index, node in enumerate(placeholders):
        example = node.meta.get("example_value")
        for axis, extent in enumerate(example.shape if isinstance(example, torch.Tensor) else ()):
            if _known(extent) is None and str(extent).isidentifier():
                yield index, axis, str(extent)


def _known(extent: int | torch.SymInt) -> int | None:
    """The number that an extent is, also of one that was symbolic until a loop over it fixed it; None while it varies."""
    return extent.node.maybe_as_int() if isinstance(extent, torch.SymInt) else extent


def _digest(module: GraphModule, inputs: Sequence[torch.Tensor], shapes: Any) -> str:
    """A name for the artifact: everything that it depends on."""
    seen = hashlib.sha256(f"{__version__} {parse_target('native')} {shapes} {module.code}".encode())
    for tensor in inputs:
        seen.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
    for name, tensor in module.state_dict().items():
        seen.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        seen.update(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
    return seen.hexdigest()[:32]


class _InferenceOnly(torch.autograd.Function):
    """Runs the artifact where autograd is watching; the backward pass says that there is none."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, weights: Sequence[torch.Tensor], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return tuple(run(tensors[: len(tensors) - len(weights)]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise CoilError("coilc compiles inference only, so there is no gradient; train with the uncompiled model")
