"""A loop that is Mamba's selective scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coilc.ir import Dims, Graph, Module, Node, Value, at, ops
from coilc.ir.dims import divide_exactly

from .classify_affine import NotAffine
from .classify_factors import Axes, Factor, factors_of, product, removed, support
from .classify_readout import TIME, Decaying, Named, contraction_of, reaches
from .match import reshaped
from .replace_values import replace_values
from .rewrite import on
from .simplify import scalar
from .trace import Declined, no
from .vectorise_time import NotParallel


@on("scan")
def scan_is_selective(node: Node) -> tuple[Value, ...] | Declined | None:
    """h = exp(dt A) h + dt x B; y = C . h   is   selective_scan(x, dt, A, B, C)

    Before::

        a: f32[L, B, D, N] = exp(mul(broadcast(dt), broadcast(A)))
        b: f32[L, B, D, N] = mul(mul(broadcast(dt), broadcast(Bm)), broadcast(x))
        h, y = scan(h0, a, b, Cm, body=step)

    After::

        y, h = selective_scan(x, dt, A, Bm, Cm)

    Needs: re-rolled graphs. Guarantees: equal up to the order of multiplication; no tensor has both L and N and D.
    """
    try:
        parts = contraction_of(node)
        return parts.results(*as_selective(parts))
    except (NotAffine, NotParallel) as broken:
        return no(f"{broken.reason} ('{broken.node.op.name}')")


@dataclass(frozen=True)
class _Roles:
    """What each factor is, and which axes are batch, channels and state (N)."""

    step: tuple[Factor, ...]
    decay: tuple[Factor, ...]
    inputs: tuple[Factor, ...]
    keys: tuple[Factor, ...]
    batch: tuple[int, ...]
    channels: tuple[int, ...]
    grouped: tuple[int, ...]
    state: tuple[int, ...]


def _roles(parts: Decaying) -> _Roles:
    if parts.added is not None:
        raise NotAffine(parts.origin, "the outputs do not read the updated state")
    (exponent, *others) = parts.decay or (None,)
    if exponent is None or others or exponent.value.op is not ops.exp:
        raise NotAffine(parts.origin, "the decay is not one exponential")
    factors = factors_of(exponent.value.node.inputs[0], exponent.axes)
    step = tuple(f for f in factors if TIME in f.support)
    decay = tuple(f for f in factors if TIME not in f.support)
    if not step or not support(decay) & parts.contracted:
        raise NotAffine(exponent.value.node, "the exponent is not a step size times a decay rate per state")
    if support(step) & parts.contracted:
        raise NotAffine(exponent.value.node, "the step size varies along the contracted axis")
    keys = tuple(f for f in parts.update if f.support & parts.contracted)
    inputs = removed((f for f in parts.update if not f.support & parts.contracted), step)
    if inputs is None:
        raise NotAffine(parts.origin, "the input is not scaled by the step size of the decay")
    batch = tuple(axis for axis in parts.rest[:1] if axis not in support(decay))
    channels = tuple(axis for axis in parts.rest if axis not in batch)
    spanned = support((*keys, *parts.query))
    grouped = tuple(axis for axis in channels if axis in spanned)
    if grouped and not any(TIME in f.support for f in (*keys, *parts.query)):
        raise NotAffine(parts.origin, "input and output vectors are constant in time and differ per channel")
    ordered = (*grouped, *(axis for axis in channels if axis not in grouped))
    return _Roles(step, decay, inputs, keys, batch, ordered, grouped, tuple(sorted(parts.contracted)))


def as_selective(parts: Decaying) -> Named:
    """The op that does this.

    Raises:
        NotAffine: it does something else.
    """
    roles = _roles(parts)
    per_channel = (roles.batch, (TIME,), roles.channels)
    per_group = (roles.batch, (TIME,), roles.grouped, roles.state)
    step, bias, positive = _step(parts, roles)
    optional = {"dt_bias": bias} if bias is not None else {}
    if scalar(parts.start) != 0:
        optional["h0"] = parts.initial(roles.batch, roles.state, roles.channels)
    y, last = ops.selective_scan(
        parts.arranged(roles.inputs, *per_channel),
        parts.arranged(step, *per_channel),
        _as_state(parts, parts.arranged(roles.decay, roles.state, roles.channels)),
        parts.arranged(roles.keys, *per_group),
        parts.arranged(parts.query, *per_group),
        *optional.values(),
        optional=tuple(optional),
        softplus=positive,
    )
    return y, last, per_channel, (roles.batch, roles.state, roles.channels)


def _as_state(parts: Decaying, decay: Value) -> Value:
    dtype = parts.start.type.dtype
    return decay if decay.type.dtype is dtype else ops.cast(decay, dtype=dtype)


def _step(parts: Decaying, roles: _Roles) -> tuple[tuple[Factor, ...], Value | None, bool]:
    """softplus(dt + dt_bias) as dt, dt_bias and True."""
    (whole, *more) = roles.step
    if more or whole.value.op is not ops.softplus:
        return roles.step, None, False
    (inner,) = whole.value.node.inputs
    if inner.op is ops.add:
        for x, bias in (inner.node.inputs, inner.node.inputs[::-1]):
            terms = factors_of(bias, whole.axes)
            if support(terms) <= set(roles.channels):
                return factors_of(x, whole.axes), parts.arranged(terms, roles.channels), True
    return factors_of(inner, whole.axes), None, True


# --- skip and gate ---------------------------------------------------------------------------------------------------

ORDER = ("D", "z", "dt_bias", "h0", "mask")


def absorb_skip_and_gate(module: Module) -> Module:
    """Let selective_scan add D * x and multiply by silu(z) itself.

    Before::

        y, h = selective_scan(x, dt, A, Bm, Cm)
        v0: f32[B, L, D] = add(y, mul(x, broadcast(D)))
        v1: f32[B, L, D] = mul(v0, silu(z))

    After::

        v1, h = selective_scan(x, dt, A, Bm, Cm, D, z, optional=("D", "z"))

    Needs: nothing. Guarantees: equal up to rounding; an output that something else reads before the skip stays.
    """
    return module.map(_absorb)


def _absorb(graph: Graph) -> Graph:
    users: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for operand in dict.fromkeys(node.inputs):
            users.setdefault(operand, []).append(node)
    only = {v: nodes[0] for v, nodes in users.items() if len(nodes) == 1 and v not in graph.results}
    replacements: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is ops.selective_scan:
            replacements |= _with_epilogue(node, only)
    return replace_values(graph, replacements) if replacements else graph


@dataclass(frozen=True)
class _View:
    """The output of a scan so far: dim i of ``value`` is the scan's axis ``axes[i]``.

    Its channels are axis 2, or axes 2 and 3 once they are cut into groups.
    """

    value: Value
    axes: Axes
    channels: tuple[int, ...] = (2,)

    def moved(self, value: Value) -> Axes | None:
        """The scan's axes of ``value``, which is this one under transposes and reshapes."""
        (whole, *more) = factors_of(value)
        if more or whole.value != self.value:
            return None
        places = {dim: axis for axis, dim in zip(self.axes, whole.axes, strict=True) if dim is not None}
        return tuple(places.get(i) for i in range(value.type.rank))


def _with_epilogue(scan: Node, only: Mapping[Value, Node]) -> dict[Value, Value]:
    """Follow the output through its only readers; returns what the last absorbed one and the last state become."""
    given = dict(zip(scan.attrs["optional"], scan.inputs[5:], strict=True))
    current = Value(scan)
    seen = _View(current, (0, 1, 2))
    while current in only:
        reader = only[current]
        if current == Value(scan) and reader.op is ops.reshape and reader.types[0].dims == _groups_apart(scan):
            seen = _View(Value(reader), (0, 1, 2, 3), (2, 3))
        elif reader.op not in (ops.transpose, ops.reshape):
            axes = seen.moved(current)
            found = axes and _absorbed(scan, given, seen, axes, reader, current)
            if not axes or not found:
                break
            given |= found
            seen = _View(Value(reader), axes, seen.channels)
        current = Value(reader)
    return _replaced(scan, given, seen) if len(given) > len(scan.attrs["optional"]) else {}


def _groups_apart(scan: Node) -> Dims:
    """Dims of the output with an axis for the groups of channels."""
    batch, length, channels = scan.types[0].dims
    groups = scan.inputs[3].dims[2]
    size = divide_exactly(channels, groups)
    return (batch, length, groups, size) if size is not None else scan.types[0].dims


def _absorbed(
    scan: Node, given: Mapping[str, Value], seen: _View, axes: Axes, reader: Node, current: Value
) -> dict[str, Value]:
    """The optional operand that stands for what ``reader`` does to ``current``."""
    others = [v for v in reader.inputs if v != current]
    if "z" in given or len(others) != 1:
        return {}
    dims = scan.types[0].dims if seen.channels == (2,) else _groups_apart(scan)
    extent = dict(enumerate(dims))
    factors = factors_of(others[0], axes)
    if reader.op is ops.add and "D" not in given:
        rest = removed(factors, factors_of(reshaped(scan.inputs[0], dims)))
        if rest and support(rest) <= set(seen.channels):
            return {"D": product(rest, (seen.channels,), extent, like=others[0])}
    if reader.op is ops.mul and len(factors) == 1 and factors[0].value.op is ops.silu and not reaches(scan, others[0]):
        inner = factors_of(factors[0].value.node.inputs[0], factors[0].axes)
        return {"z": product(inner, ((0,), (1,), seen.channels), extent, like=others[0])}
    return {}


def _replaced(scan: Node, given: Mapping[str, Value], seen: _View) -> dict[Value, Value]:
    optional = tuple(name for name in ORDER if name in given)
    operands = (*scan.inputs[:5], *(given[name] for name in optional))
    last_reader = seen.value.location
    with at(replace(scan.location, source=last_reader.source) if scan.location and last_reader else last_reader):
        y, last = ops.selective_scan(*operands, optional=optional, softplus=scan.attrs["softplus"])
    dims = seen.value.dims
    y = y if seen.channels == (2,) else ops.reshape(y, dims=_groups_apart(scan))
    places = tuple(seen.axes.index(i) if i in seen.axes else None for i in range(y.type.rank))
    view = product([Factor(y, places)], [(i,) for i in range(len(dims))], dict(enumerate(dims)), like=y)
    return {seen.value: view, Value(scan, 1): last}
