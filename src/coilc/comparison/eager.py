"""The PyTorch side of a comparison: values inside an exported program, and the outputs of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

Observe = Callable[[str, np.ndarray], None]


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A NumPy view of a CPU tensor, bfloat16 included."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested tuples, dicts and dataclasses, in the order in which torch.export flattens them."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _Observed(torch.fx.Interpreter):
    """Runs a graph and reports the values whose names are wanted as they are computed, keeping none of them."""

    def __init__(self, module: torch.fx.GraphModule, wanted: Container[str], observe: Observe) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.wanted, self.observe = wanted, observe

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted and isinstance(result, torch.Tensor):
            self.observe(n.name, to_numpy(result))
        return result


def observe_values(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any], wanted: Container[str], observe: Observe
) -> None:
    """Run an exported program eagerly and call ``observe(name, array)`` for each wanted value, in order."""
    with torch.no_grad():
        _Observed(program.graph_module, wanted, observe).run(*_flat_inputs(program, args, kwargs))


def _flat_inputs(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Parameters, buffers, constants and the user's inputs, in the order of the graph's placeholders.

    The user's tensors are copied, since a program may write into them.
    """
    leaves = iter(pytree.tree_leaves((args, dict(kwargs))))
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            leaf = next(leaves)
            yield leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
        else:
            yield _stored(program, str(spec.target))


def _stored(program: ExportedProgram, name: str) -> Any:
    value = program.state_dict[name] if name in program.state_dict else program.constants[name]
    return value.clone() if isinstance(value, torch.Tensor) else value
