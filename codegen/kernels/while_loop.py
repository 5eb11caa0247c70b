"""The loop whose number of steps depends on data: one task, whose kernels run until the condition is false.

Body and condition are small programs, as a scan's step is (``step.py``). What has no static size is in results of the loop.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Value
from coilc.passes.schedule_steps import Step, schedule_whole

from ..reader import Reader, store_element
from ..scalar import decode, storage_dtype
from .anchor import Anchor
from .loops import local
from .step import Part, Steps


def emit_while_loop(k: Anchor) -> None:
    """Write the body of the kernel: the last carries."""
    part = Part(k, [{} for _ in k.node.inputs], [{} for _ in k.node.types])
    Iterations(part, schedule_whole(k.node.attrs["body"]), k.kernel.reader.dims, {}).emit()


class Iterations(Steps):
    """The code of a loop: its carries, the kernels of its body and, before each step, those of its condition."""

    def emit(self) -> None:
        """Write the loop."""
        carries = self.part.carries
        states = {
            i: v for i, v in enumerate(self.step.body.inputs[:carries]) if not self.step.unread(i) or self._asked(i)
        }
        memory = {i: self._memory(v, i) for i, v in states.items()}
        kept = {v: self._memory(v, self.step.result_for(v, carries)) for v in self.step.kept}
        for i, value in states.items():
            self._for_each(value, partial(self._load, i, value, memory[i]))
        question = schedule_whole(self.k.node.attrs["condition"])
        answers = {v: self._memory(v, None) for v in question.kept}
        (answer,) = question.results
        go = local((1,), storage_dtype(answer.type.dtype))
        self._compute(question, memory, answers, {answer: go})
        with T.While(decode(go[0], answer.type.dtype)):
            self._compute(self.step, memory, kept, {})
            for i, value in states.items():
                self._copy(value, kept[self.step.results[i]], memory[i])
            self._compute(question, memory, answers, {answer: go})
        for i, value in states.items():
            if isinstance(value.type.size, int):
                reader = Reader(self.step.graph, {value: memory[i]}, self.inside.reader.dims)
                self._for_each(value, partial(self._store, i, None, value, reader))

    def _asked(self, carry: int) -> bool:
        """Whether the condition reads a carry."""
        condition = self.k.node.attrs["condition"]
        return condition.inputs[carry] in condition.uses

    def _compute(
        self,
        step: Step,
        memory: dict[int, tirx.Buffer],
        kept: dict[Value, tirx.Buffer],
        wanted: dict[Value, tirx.Buffer],
    ) -> None:
        """Run the kernels of a body or a condition, and write the values ``wanted``."""
        inputs, carries = step.body.inputs, self.part.carries
        given = {inputs[i]: buffer for i, buffer in memory.items()} | kept
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
