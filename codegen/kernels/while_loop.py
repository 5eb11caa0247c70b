"""The loop whose number of steps depends on data: one task, whose kernels run until the condition is false.

Body and condition are small programs, as a scan's step is (``step.py``). What has no static size is in results of the loop.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Value
from coilc.passes.schedule_steps import Step, schedule_whole

from ..loops import alone
from ..reader import Reader, store_element
from ..scalar import decode, storage_dtype
from .anchor import Anchor
from .loops import local
from .step import Part, Steps


def emit_while_loop(k: Anchor) -> None:
    """Write the body of the kernel: the last carries."""
    part = Part(k, [{} for _ in k.node.inputs], [{} for _ in k.node.types])
    with alone():
        Iterations(part, schedule_whole(k.node.attrs["body"]), k.kernel.reader.dims, {}).emit()


class Iterations(Steps):
    """The code of a loop: its carries, the kernels of its body and, before each step, those of its condition."""

    def emit(self) -> None:
        """Write the loop."""
        memory, kept = self._allocate()
        question = schedule_whole(self.k.node.attrs["condition"])
        # Body and condition name the carries apart.
        asked = dict(zip(question.body.inputs, memory.values(), strict=False))
        answers = {v: self._memory(v, None) for v in question.kept}
        (answer,) = question.results
        go = local((1,), storage_dtype(answer.type.dtype))
        self._compute(question, asked, answers, {answer: go})
        with T.While(decode(go[0], answer.type.dtype)):
            self._compute(self.step, memory, kept, {})
            self._advance(memory, kept)
            self._compute(question, asked, answers, {answer: go})
        self._store_carries(memory)

    def _compute(
        self,
        step: Step,
        memory: dict[Value, tirx.Buffer],
        kept: dict[Value, tirx.Buffer],
        wanted: dict[Value, tirx.Buffer],
    ) -> None:
        """Run the kernels of a body or a condition, and write the values ``wanted``."""
        inputs, carries = step.body.inputs, self.part.carries
        given = memory | kept
        views = {v: self.part.operand(i) for i, v in enumerate(inputs[carries:], carries)}
        for i, value in enumerate(inputs[carries:], carries):
            buffer = self.k.kernel.reader.buffers.get(self.k.operands[i])
            given |= {} if buffer is None or len(buffer.shape) != 1 else {value: buffer}
        reader = Reader(step.graph, given, self.inside.reader.dims, views)
        for node in step.calls:
            self._run(node, reader, kept)
        for value, buffer in wanted.items():
            store_element(buffer, [], reader.read(value, []), value.type.dtype)

    def _moves(self, operand: int) -> bool:
        return False
