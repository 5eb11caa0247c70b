"""The one rewrite engine: named rules over nodes, operands first, to a fixed point. It knows no op.

A rule is a function from a node to its replacement (a value, or one value per result), to ``no("reason")`` when it
recognises the node but must leave it, or to ``None`` when the node is none of its business. ``@on("mul", "add")`` says
which ops a rule looks at. Because nodes are hash-consed, common subexpressions merge by themselves and unused nodes
vanish, so no pass removes either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from coilc.ir import CoilError, Graph, Module, Node, Value, at
from coilc.ir.opdef import MIXER, MOVEMENT

from .trace import Declined, record_firing, record_refusal

Results = tuple[Value, ...]
Rule = Callable[[Node], "Value | tuple[Value, ...] | Declined | None"]

STEPS_PER_NODE = 64  # a terminating set of rules stays far below; a growing one is stopped with its rule named


class RewriteError(CoilError):
    """Rules that never come to rest."""


def on(*names: str) -> Callable[[Rule], Rule]:
    """Restrict a rule to the ops called ``names``, so that the engine offers it no other node."""

    def mark(rule: Rule) -> Rule:
        rule.ops = names  # type: ignore[attr-defined]
        return rule

    return mark


def rewrite_module(module: Module, *rules: Rule) -> Module:
    """Apply ``rules`` to every entry; entries share the work on what they have in common."""
    return module.map(Rewriter(rules, sum(len(g.nodes) for g in module.entries.values())).graph)


def rewrite_graph(graph: Graph, *rules: Rule) -> Graph:
    """Apply ``rules`` everywhere in ``graph``, bodies of scans included.

    Raises:
        RewriteError: the rules do not terminate; the message names the rule and the node.
    """
    return Rewriter(rules, len(graph.nodes)).graph(graph)


class Rewriter:
    """The state of one rewriting: what every visited node became."""

    def __init__(self, rules: Sequence[Rule], size: int) -> None:
        self.general = [rule for rule in rules if not hasattr(rule, "ops")]
        self.by_op: dict[str, list[Rule]] = {}
        for rule in rules:
            for name in getattr(rule, "ops", ()):
                self.by_op.setdefault(name, []).append(rule)
        self.done: dict[Node, Results] = {}
        self.pending: dict[Node, tuple[Results, str]] = {}  # replaced; the replacement is still being rewritten
        self.bodies: dict[Graph, Graph] = {}
        self.steps = STEPS_PER_NODE * size + 10_000

    def graph(self, graph: Graph) -> Graph:
        """Rewrite what the outputs need. Inputs stay as they are."""
        for value in graph.inputs:
            self.done[value.node] = value.node.results
        return graph.with_results(self.value(v) for v in graph.results)

    def value(self, value: Value) -> Value:
        """What ``value`` becomes."""
        if value.node not in self.done:
            self.visit(value.node)
        return self.done[value.node][value.index]

    def visit(self, root: Node) -> None:
        """Bring ``root`` to its normal form; an explicit stack, so that depth costs no recursion."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.done:
                stack.pop()
                continue
            if node not in self.pending and not (waiting := self.unvisited(node.inputs)):
                self.step(node)
                continue
            if node in self.pending:
                results, _ = self.pending[node]
                waiting = self.unvisited(results)
                if not waiting:
                    del self.pending[node]
                    self.done[node] = self.resolve(results)
                    continue
            self.refuse_cycles(waiting)
            stack.extend(reversed(waiting))

    def unvisited(self, values: Results) -> list[Node]:
        return [v.node for v in values if v.node not in self.done]

    def refuse_cycles(self, waiting: list[Node]) -> None:
        for node in waiting:
            if node in self.pending:
                _, rule = self.pending[node]
                raise RewriteError(f"rule '{rule}' brings back the node it replaced: {node}", node.location)

    def resolve(self, values: Results) -> Results:
        return tuple(self.done[v.node][v.index] for v in values)

    def step(self, node: Node) -> None:
        """One node whose operands are in normal form: rebuild it on them, or else let one rule fire."""
        inputs, attrs = self.resolve(node.inputs), self.rewritten_bodies(node.attrs)
        if inputs != node.inputs or attrs is not node.attrs:
            with at(node.location):
                self.pending[node] = (Node.make(node.op, inputs, attrs).results, "rebuild")
            return
        for rule in (*self.by_op.get(node.op.name, ()), *self.general):
            results = self.fire(rule, node)
            if results is not None:
                self.pending[node] = (results, rule.__name__)
                return
        self.done[node] = node.results

    def fire(self, rule: Rule, node: Node) -> Results | None:
        with at(node.location and node.location.interior()):
            outcome = rule(node)
        if outcome is None:
            return None
        if isinstance(outcome, Declined):
            record_refusal(rule.__name__, node, outcome.reason)
            return None
        results = (outcome,) if isinstance(outcome, Value) else outcome
        self.check(rule, node, results)
        inherit_location(node, results)
        keep_place(node, results)
        record_firing(rule.__name__, node, results)
        return results

    def check(self, rule: Rule, node: Node, results: Results) -> None:
        found = tuple(v.type for v in results)
        if found != node.types:
            raise RewriteError(f"rule '{rule.__name__}' turned {node} into {found}", node.location)
        self.steps -= 1
        if self.steps < 0:
            raise RewriteError(f"rule '{rule.__name__}' does not come to rest; it last fired on {node}", node.location)

    def rewritten_bodies(self, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
        bodies = {name: self.body(a) for name, a in attrs.items() if isinstance(a, Graph)}
        unchanged = all(attrs[name] == body for name, body in bodies.items())
        return attrs if unchanged else {**attrs, **bodies}

    def body(self, body: Graph) -> Graph:
        if body not in self.bodies:
            self.bodies[body] = self.graph(body)
        return self.bodies[body]


def inherit_location(node: Node, results: Results) -> None:
    """Let replacements say which value of the model they equal, unless they already say it of another.

    Helper nodes that a rule builds carry the interior location; only the replacement itself equals the old node.
    """
    if node.location is None or not node.location.source:
        return
    value = results[0]
    unnamed = value.location is None or not value.location.source
    if value.index == 0 and value.node.inputs and unnamed:
        value.node.location = node.location


def keep_place(node: Node, results: Results) -> None:
    """A recurrence that takes in the op that reads it, a gate or a skip, stays at its own line of the model."""
    after = unmoved(results[0]).node
    if MIXER not in after.op.traits or after is node or after.location is None:
        return
    before = next((v.node for v in map(unmoved, node.inputs) if v.op is after.op), None)
    if before and before is not after and before.location:
        after.location = replace(before.location, source=after.location.source)


def unmoved(value: Value) -> Value:
    """What ``value`` is a view of."""
    while MOVEMENT in value.op.traits and len(value.node.inputs) == 1:
        (value,) = value.node.inputs
    return value
