"""Find recurrences that are written as masked products, cumulative sums or chunks, and run them over time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coilc.ir import Dim, Dims, Graph, Module, Node, Value, at

from .causal_domains import CausalSum, always, causal_sum, complete, domains, moments, time_variables
from .decayed_terms import Term, possible
from .emit_causal_sums import Emission
from .expand_causal_sums import FAMILY, Expansion, product
from .index_algebra import NotExact, Range, Space
from .read_masks import COMPARISONS, is_power, is_triangle
from .replace_values import replace_values
from .trace import record_firing, record_refusal

ROOTS = ("add", "sub", "matmul", "einsum", "sum", "slice")
RULE = "causal_sum_is_recurrence"


def recognise_causal_sums(module: Module) -> Module:
    """A sum over the past of products that decay, however it is written, becomes the recurrence that computes it.

    Before::

        c: f32[B, L, H] = cumsum(g, axis=1)
        decay: f32[B, L, L, H] = exp(where(i >= j, c[i] - c[j], -inf))
        scores: f32[B, L, L, H] = mul(einsum(q, k, equation="bihn,bjhn->bijh"), decay)
        y: f32[B, L, H, P] = einsum(scores, v, equation="bijh,bjhp->bihp")

    After::

        y, last = gated_linear_attention(q, k, v, g)

    Needs: loops are classified, so that a recurrence over chunks is a linear_scan. Guarantees: equal up to rounding, and
    no exponent grows above the decay of one step. What is no such sum stays, with a reason.
    """
    return module.map(lambda graph: _recognised(graph, module.weights))


def _recognised(graph: Graph, arrays: Mapping[str, np.ndarray]) -> Graph:
    declined: set[Value] = set()
    while replacements := dict(_replacements(graph, arrays, declined)):
        graph = replace_values(graph, replacements)
    return graph


def _replacements(
    graph: Graph, arrays: Mapping[str, np.ndarray], declined: set[Value]
) -> Iterator[tuple[Value, Value]]:
    """From the outputs backwards, so that a whole is found before its parts, which are then left alone for this round."""
    mixing, inside = mixing_values(graph, arrays), set[Value]()
    rank = {node: i for i, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        root = Value(node)
        if root in inside:
            inside.update(v for v in node.inputs if v in mixing)
            continue
        if root not in mixing or node.op.name not in ROOTS or root in declined or not root.type.dtype.is_float:
            continue
        declined.add(root)
        try:
            with at(node.location and node.location.interior()):
                found = _recurrence(root, mixing, graph.ranges, arrays, rank)
        except NotExact as reason:
            record_refusal(RULE, node, str(reason))
            continue
        record_firing(RULE, node, (found,))
        inside.update(v for v in node.inputs if v in mixing)
        yield root, found


def mixing_values(graph: Graph, arrays: Mapping[str, np.ndarray]) -> set[Value]:
    """Values that running sums and causal masks lead to, through ops of sums, products and exponentials."""
    mixing: set[Value] = set()
    positions: set[Value] = set()
    for node in graph.nodes:
        name, dtype, reads = node.op.name, node.types[0].dtype, set(node.inputs)
        if name == "iota" or (dtype.is_integer and reads & positions):
            positions.add(Value(node))
        starts = (
            (name in ("cumsum", "linear_scan") and dtype.is_float)
            or (name in ("constant", "weight") and (is_triangle(node, arrays) or is_power(node, arrays)))
            or (name in COMPARISONS and reads & positions)
        )
        if starts or (name in FAMILY and reads & mixing):
            mixing.add(Value(node))
    return mixing


# --- from terms to a recurrence ---------------------------------------------------------------------------------------


def _recurrence(
    root: Value,
    mixing: Collection[Value],
    ranges: Mapping[str, Range],
    arrays: Mapping[str, np.ndarray],
    rank: Mapping[Node, int],
) -> Value:
    """What computes ``root`` in one pass over time.

    Raises:
        NotExact: it is no decayed sum over the past.
    """
    space = Space(ranges)
    index = tuple(space.fresh(n, free=True) for n in root.dims)
    expansion = Expansion(space, arrays, mixing)
    terms = _resolved(expansion.terms(root, index), space)
    rest = [t for t in terms if not t.bound and not t.exponent]
    terms = _opened([t for t in terms if t.bound or t.exponent], expansion)
    if not terms:
        raise NotExact("nothing is summed over time")
    limits = tuple(n - 1 - e for e, n in zip(index, root.dims, strict=True))
    if any(not always(g, space, limits) for term in rest for g in term.guards):
        raise NotExact("what is added to the sum is masked")
    summed, now, strict = _one_sum(terms, space, limits, rank)
    result = Emission(space, root, index, now, strict).result(summed, rest)
    if result == root:
        raise NotExact("it runs over time as it is")
    return result


def _resolved(terms: Sequence[Term], space: Space) -> list[Term]:
    moved = (t.at(space.resolve) for t in terms)
    return [replace(t, guards=tuple(g for g in t.guards if not space.holds(g))) for t in moved if possible(t, space)]


def _opened(terms: list[Term], expansion: Expansion) -> list[Term]:
    """Open what depends on two moments until no factor does."""
    done: list[Term] = []
    waiting = _resolved(terms, expansion.space)
    while waiting:
        term = waiting.pop()
        moving = time_variables(term, expansion.space)
        both = [r for r in term.refs if sum(bool(expansion.space.variables(e) & moving) for e in r.index) > 1]
        if not both:
            done.append(term)
            continue
        others = list(term.refs)
        others.remove(both[0])
        opened = product([replace(term, refs=tuple(others))], expansion.opened(both[0]))
        waiting += _resolved(opened, expansion.space)
    return _resolved(done, expansion.space)


def _one_sum(
    terms: Sequence[Term], space: Space, limits: Dims, rank: Mapping[Node, int]
) -> tuple[CausalSum, Dim, bool]:
    """The terms as one sum over the whole past, the moment of the result, and whether the past ends before it."""
    sums: dict[object, CausalSum] = {}
    covered: list[tuple[str, ...]] = []
    nows: dict[Dim, None] = {}
    for term in terms:
        now, then = moments(term, space)
        found = causal_sum(term, now, then, space, lambda v: rank.get(v.node, -1))
        sums.setdefault(found.key, found)
        nows.setdefault(now)
        covered += domains(term, now, then, space, limits)
    if len(sums) != 1 or len(nows) != 1:
        raise NotExact(f"{len(sums)} different sums over time are added")
    wanted, (summed,), (now,) = complete(len(covered[0])), sums.values(), nows
    strict = wanted - set(covered) == {("equal",) * len(covered[0])}
    if len(set(covered)) != len(covered) or not (strict or set(covered) == wanted):
        missing = sorted(wanted - set(covered))
        raise NotExact(f"the sums do not cover the past once: missing {missing}, have {sorted(covered)}")
    if summed.spared and not strict:
        raise NotExact("the exponent does not add up to the decay from then to now: it leaves out that of now")
    return summed, now, strict
