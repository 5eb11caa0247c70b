"""Movement: every result element is a copy of an operand's element."""

from __future__ import annotations

import numpy as np

from .. import dims as d
from ..errors import TypeRuleError
from ..opdef import MOVEMENT, BadExample, Example, OpDef
from ..types import TensorType

_MOVES = frozenset({MOVEMENT})


def _broadcast(x: TensorType, *, dims: d.Dims) -> TensorType:
    kept = zip(x.dims, dims[len(dims) - x.rank :], strict=True)
    if x.rank > len(dims) or any(a not in (1, b) for a, b in kept):
        raise TypeRuleError(f"cannot be broadcast to [{', '.join(map(str, dims))}]: a dim must be 1 or equal")
    return x.with_dims(dims)


def _reshape(x: TensorType, *, dims: d.Dims) -> TensorType:
    if d.size(dims) != x.size:
        raise TypeRuleError(f"[{', '.join(map(str, dims))}] has {d.size(dims)} elements, the operand {x.size}")
    return x.with_dims(dims)


broadcast = OpDef(
    "broadcast",
    infer=_broadcast,
    reference=lambda x, *, dims: np.broadcast_to(x, dims),
    traits=_MOVES,
    aliases={"aten": ("aten.expand.default",)},
    examples=(Example(("f32[3, 1]",), {"dims": (2, 3, 5)}), Example(("f32[()]",), {"dims": (7,)})),
    bad_examples=(BadExample(("f32[3]",), {"dims": (4,)}, "a dim must be 1 or equal"),),
    doc="Repeat along dims of extent 1 and new leading dims.",
)
reshape = OpDef(
    "reshape",
    infer=_reshape,
    reference=lambda x, *, dims: np.reshape(x, dims),
    traits=_MOVES,
    aliases={"aten": ("aten.view.default", "aten.reshape.default")},
    examples=(Example(("f32[3, 4]",), {"dims": (2, 6)}), Example(("f32[1]",), {"dims": ()})),
    bad_examples=(BadExample(("f32[3, 4]",), {"dims": (5, 2)}, "elements"),),
    doc="The same elements in row-major order under other dims.",
)
