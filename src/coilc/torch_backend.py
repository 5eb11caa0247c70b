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
from coilc.ir import CoilError
from coilc.runtime import ArtifactError, Model, load

Compiled = Callable[..., "list[torch.Tensor]"]


def coilc(graph: GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """The backend that ``torch.compile`` calls: a graph in, a function over the same inputs out."""
    return _Compiled(graph)


class _Compiled:
    """A captured graph, compiled when it is first called with real tensors."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.placeholders = graph.graph.find_nodes(op="placeholder")
        self.frozen: tuple[tuple[int, int], ...] = ()
        self.model: Model | None = None
        self.names: list[str] = []

    def __call__(self, *args: Any) -> list[torch.Tensor]:
        weights = [arg for arg in args if _is_weight(arg)]
        state = tuple((w.data_ptr(), w._version) for w in weights)
        if self.model is None or state != self.frozen:
            self.model, self.frozen = self._compile(args), state
            self.names = [tensor["name"] for tensor in self.model.describe()["entries"]["main"]["inputs"]]
        inputs = [arg for arg in args if isinstance(arg, torch.Tensor) and not _is_weight(arg)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*weights, *inputs)):
            return list(_InferenceOnly.apply(self._run, weights, *inputs, *weights))
        return self._run(inputs)

    def _run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert self.model is not None
        outputs = self.model.run("main", dict(zip(self.names, inputs, strict=True)))
        return [value if isinstance(value, torch.Tensor) else torch.from_numpy(value) for value in outputs.values()]

    def _compile(self, args: Sequence[Any]) -> Model:
        module, inputs, shapes = _closed(self.graph, self.placeholders, args)
        path = Path(settings.CACHE.get()) / f"{_digest(module, inputs, shapes)}.coil"
        try:
            return load(path)
        except ArtifactError:  # not there yet, or damaged: build it
            with torch.no_grad():
                program = export(module, inputs, {}, dynamic_shapes=shapes)
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
    symbol = str(original.meta["example_value"])
    if symbol not in sizes:
        raise CoilError(f"the graph takes the number {symbol}, which is no size of an input; pass it as a tensor")
    return module.graph.call_function(torch.ops.aten.sym_size.int, sizes[symbol])


def _symbolic_axes(placeholders: Sequence[Node]) -> Iterator[tuple[int, int, str]]:
    """Index of the input, axis and symbol of every extent that is a symbol."""
    for index, node in enumerate(placeholders):
        example = node.meta.get("example_value")
        for axis, extent in enumerate(example.shape if isinstance(example, torch.Tensor) else ()):
            if isinstance(extent, torch.SymInt) and str(extent).isidentifier():
                yield index, axis, str(extent)


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
    def forward(ctx: Any, run: Any, weights: Sequence[torch.Tensor], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(run(tensors[: len(tensors) - len(weights)]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise CoilError("coilc compiles inference only, so there is no gradient; train with the uncompiled model")
