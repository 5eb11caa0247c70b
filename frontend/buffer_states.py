"""Buffers that a model updates while it runs: states of the entry, which the caller or a session keeps."""

from __future__ import annotations

from collections.abc import Iterable

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from coilc.ir import CoilError, TensorType, Value, literal, ops
from coilc.ir.types import DTYPES

from .locations import location_of

_STARTED = "started"  # the state that is true after the first call
_REFUSED = {OutputKind.USER_INPUT_MUTATION: "input", OutputKind.PARAMETER_MUTATION: "parameter"}


class BufferStates:
    """The states of an entry, by name of the buffer.

    Args:
        taken: names of the entry's other inputs and outputs.

    Raises:
        CoilError: the model updates an input or a parameter.
    """

    def __init__(self, program: ExportedProgram, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self.before: dict[str, Value] = {}
        self.after: dict[str, Value] = {}
        self.updated = set(_updated(program))

    def enter(self, buffer: str, type_: TensorType, initial: Value | None) -> Value:
        """What the model reads: its value before this call, or ``initial`` (``None``: zero) in the first call."""
        before = self._input(buffer, type_)
        if initial is None:
            return before
        if _STARTED not in self.before:
            self._input(_STARTED, TensorType(DTYPES["bool"], ()))
            self.after[_STARTED] = literal(True, DTYPES["bool"])
        return ops.where(self.before[_STARTED], before, initial)

    def _input(self, name: str, type_: TensorType) -> Value:
        argument = "".join(c if c.isalnum() else "_" for c in name)
        while argument in self.taken:
            argument += "_state"
        self.taken.add(argument)
        self.before[name] = ops.input_(name=argument, type=type_)
        return self.before[name]

    @property
    def links(self) -> tuple[tuple[str, str], ...]:
        """``Graph.states``."""
        return tuple((value.node.attrs["name"], name) for name, value in self.before.items())


def name_constants(program: ExportedProgram) -> ExportedProgram:
    """The program, in place, with one name for a tensor that torch found both as a buffer and inside some other object.

    transformers' caches are such objects; torch cannot make updates of a tensor with two names explicit.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    tensors, specs = {**program.state_dict, **program.constants}, program.graph_signature.input_specs
    buffers = {id(tensors[s.target]): nodes[s.arg.name] for s in specs if s.kind == InputKind.BUFFER}
    for spec in [s for s in specs if s.kind == InputKind.CONSTANT_TENSOR]:
        if buffer := buffers.get(id(tensors[spec.target])):
            nodes[spec.arg.name].replace_all_uses_with(buffer)
            program.graph.erase_node(nodes[spec.arg.name])
            specs.remove(spec)
    program.graph_module.recompile()
    return program


def _updated(program: ExportedProgram) -> Iterable[str]:
    nodes = {node.name: node for node in program.graph.nodes}
    kinds = {spec.target: spec.kind for spec in program.graph_signature.input_specs}
    for spec in program.graph_signature.output_specs:
        if spec.kind in _REFUSED:
            location = location_of(nodes[spec.arg.name])
            raise CoilError(
                f"the model updates {_REFUSED[spec.kind]} '{spec.target}' in place, and an artifact's run leaves its "
                f"inputs and weights as they are; return the new value as an output instead",
                location and location.interior(),
            )
        if spec.kind == OutputKind.BUFFER_MUTATION and kinds[spec.target] == InputKind.BUFFER:
            yield str(spec.target)
