"""Recognise softmax, RMS and layer normalisation written out in elementary ops."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, ops

from .match import both_orders, last_axis, operands, plus_number, scalar, unspread
from .rewrite import Rule, on, rewrite_module
from .trace import Declined, no


def recognise_norms(module: Module) -> Module:
    """Replace written-out normalisations by ``rms_norm``, ``layer_norm`` and ``softmax``.

    Before::

        v0: f32[B, 8] = mul(x, x)
        v1: f32[B, 1] = mean(v0, axes=(1,), keepdims=True)
        v4: f32[B, 1] = add(v1, eps)
        v5: f32[B, 1] = rsqrt(v4)
        v6: f32[B, 8] = broadcast(v5, dims=(B, 8))
        v7: f32[B, 8] = mul(x, v6)
        v8: f32[B, 8] = broadcast(w, dims=(B, 8))
        v9: f32[B, 8] = mul(v7, v8)

    After::

        v0: f32[B, 8] = rms_norm(x, w, eps=1e-05)

    Needs: exact identities applied. Guarantees: the same formulas; a cast between the norm and its gain stays where it is.
    """
    return rewrite_module(module, *RULES)


def inverse_root(value: Value) -> Value | None:
    """``s`` if ``value`` is 1 / sqrt(s)."""
    if found := operands(value, ops.rsqrt):
        return found[0]
    if found := operands(value, ops.reciprocal):
        root = operands(found[0], ops.sqrt)
        return root[0] if root else None
    if (found := operands(value, ops.div)) and scalar(found[0]) == 1 and (root := operands(found[1], ops.sqrt)):
        return root[0]
    if (found := operands(value, ops.pow)) and scalar(found[1]) == -0.5:
        return found[0]
    return None


def mean_of(value: Value) -> Value | None:
    """``x`` if ``value`` is its mean over the last axis, with the axis kept."""
    while value.op is ops.reshape:  # a mean without keepdims whose axis was put back
        (inner,) = value.node.inputs
        if (*inner.dims, 1) != value.dims:
            return None
        value = inner
    if value.op is not ops.mean or value.node.attrs["axes"] != last_axis(value.node.inputs[0]):
        return None
    return value.node.inputs[0]


def is_mean_square(value: Value, x: Value) -> bool:
    square = mean_of(value)
    return square is not None and (operands(square, ops.mul) == (x, x) or operands(square, ops.square) == (x,))


def is_centred(value: Value, x: Value) -> bool:
    """Whether ``value`` is ``x`` minus its mean."""
    parts = operands(value, ops.sub)
    return bool(parts) and parts is not None and parts[0] == x and mean_of(unspread(parts[1])) == x


def normalised(x: Value, root: Value | None) -> Value | None:
    """``x / sqrt(root)`` as a norm."""
    shifted = plus_number(root) if root else None
    if shifted is None:
        return None
    power, eps = shifted
    if is_mean_square(power, x):
        return ops.rms_norm(x, eps=short(eps))
    if power.op is ops.var and power.node.attrs == {"axes": last_axis(x), "keepdims": True, "correction": 0}:
        (source,) = power.node.inputs
        return ops.layer_norm(source, eps=short(eps)) if is_centred(x, source) else None
    return None


def short(number: float) -> float:
    """The shortest decimal that rounds to the same f32: 1e-05 rather than 9.999999747378752e-06."""
    return next(
        s for digits in range(1, 18) if abs((s := float(f"{number:.{digits}g}")) - number) <= 2**-25 * abs(number)
    )


@on("mul")
def norm_by_product(node: Node) -> Value | None:
    """x * rsqrt(mean(x*x) + eps) = rms_norm(x)"""
    found = (normalised(x, inverse_root(unspread(factor))) for x, factor in both_orders(node))
    return next((norm for norm in found if norm), None)


@on("div")
def norm_by_division(node: Node) -> Value | None:
    """x / sqrt(mean(x*x) + eps) = rms_norm(x)"""
    x, divisor = node.inputs
    root = operands(unspread(divisor), ops.sqrt)
    return normalised(x, root[0]) if root else None


@on("rms_norm")
def rms_norm_of_centred(node: Node) -> Value | None:
    """rms_norm(x - mean(x)) = layer_norm(x)"""
    centred, *gain = node.inputs
    parts = operands(centred, ops.sub)
    if parts is None or not is_centred(centred, parts[0]):
        return None
    return ops.layer_norm(parts[0], *gain, eps=node.attrs["eps"])


@on("mul")
def gain_of_norm(node: Node) -> Value | Declined | None:
    """rms_norm(x) * w = rms_norm(x, w)"""
    for norm, factor in both_orders(node):
        if norm.op in (ops.rms_norm, ops.layer_norm) and len(norm.node.inputs) == 1:
            gain = unspread(factor)
            if gain.dims != norm.dims[-1:]:
                return no(f"the gain {gain.type} is not one vector along the last axis")
            return norm.op(norm.node.inputs[0], gain, **norm.node.attrs)
    return None


@on("add")
def shift_of_layer_norm(node: Node) -> Value | None:
    """layer_norm(x, w) + b = layer_norm(x, w, b)"""
    for norm, term in both_orders(node):
        shift = unspread(term)
        if norm.op is ops.layer_norm and len(norm.node.inputs) == 2 and shift.dims == norm.dims[-1:]:
            return ops.layer_norm(*norm.node.inputs, shift, **norm.node.attrs)
    return None


@on("div")
def softmax_by_division(node: Node) -> Value | None:
    """exp(x - max(x)) / sum(exp(x - max(x))) = softmax(x)"""
    top, bottom = node.inputs
    total = unspread(bottom)
    exponent = operands(top, ops.exp)
    if total.op is not ops.sum or total.node.inputs != (top,) or len(total.node.attrs["axes"]) != 1 or not exponent:
        return None
    parts = operands(exponent[0], ops.sub)
    largest = unspread(parts[1]) if parts else None
    if parts is None or largest is None or largest.op is not ops.max or largest.node.inputs != (parts[0],):
        return None
    (axis,) = total.node.attrs["axes"]
    same = largest.node.attrs == total.node.attrs and total.node.attrs["keepdims"]
    return ops.softmax(parts[0], axis=axis) if same else None


RULES: tuple[Rule, ...] = (
    norm_by_product, norm_by_division, rms_norm_of_centred, gain_of_norm, shift_of_layer_norm, softmax_by_division,
)  # fmt: skip
