"""Buffers and inputs that a model updates while it runs: states of the entry, which the caller or a session keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from coilc.ir import CoilError, TensorType, Value, ops

from .locations import location_of


class BufferStates:
    """The states of an entry, by name of the buffer or input.

    Args:
        inputs: names of the entry's inputs, by placeholder.

    Attributes:
        updated: names of the buffers that the model updates.
        initial: what they are in the first call, by name of the input, where that is not zero.
        given: the inputs that it updates, by placeholder.

    Raises:
        CoilError: the model updates a parameter.
    """

    def __init__(self, program: ExportedProgram, inputs: Mapping[str, str]) -> None:
        self.taken = set(inputs.values())
        self.before: dict[str, Value] = {}
        self.after: dict[str, Value] = {}
        self.initial: dict[str, np.ndarray] = {}
        specs = program.graph_signature.output_specs
        self.given = {str(s.target): inputs[str(s.target)] for s in specs if s.kind == OutputKind.USER_INPUT_MUTATION}
        self.updated = set(_updated(program))

    def enter(self, buffer: str, type_: TensorType, value: np.ndarray) -> Value:
        """What the model reads: what the buffer was after the call before, or ``value`` in the first one."""
        name = "".join(c if c.isalnum() else "_" for c in buffer)
        while name in self.taken:
            name += "_state"
        self.taken.add(name)
        self.before[buffer] = ops.input_(name=name, type=type_)
        if value.any():
            self.initial[name] = value
        return self.before[buffer]

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
        if spec.kind == OutputKind.PARAMETER_MUTATION:
            location = location_of(nodes[spec.arg.name])
            raise CoilError(
                f"the model updates parameter '{spec.target}' in place, and an artifact's run leaves its weights as they "
                f"are; make it a buffer, or return the new value as an output",
                location and location.interior(),
            )
        if spec.kind == OutputKind.BUFFER_MUTATION and kinds[spec.target] == InputKind.BUFFER:
            yield str(spec.target)
