"""Language generation: a session turned into a stream of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import InputError
from .model import Model

_Array = np.ndarray[Any, Any]


def generate(
    model: Model, prompt: Sequence[int], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> Iterator[int]:
    """Token after token, without end; the prompt runs when the first is asked for.

    Args:
        model: with entries ``prefill`` and ``step`` from tokens to logits.
        prompt: at least one token.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample among this many likeliest tokens; 0: all.
        top_p: sample among the fewest likeliest tokens that together have this probability.
        seed: equal seeds give equal tokens.

    Raises:
        InputError: the model is no language model, or an option is out of its range.
    """
    if not len(prompt):
        raise InputError("the prompt is empty; give at least one token")
    if not temperature >= 0 or top_k < 0 or seed < 0 or not 0 < top_p <= 1:  # NaN is not >= 0 either
        raise InputError("temperature, top_k and seed must not be negative, and top_p lies above 0 and at most at 1")
    tokens, logits = signature(model)
    return _stream(model, tokens, logits, prompt, (temperature, top_k, top_p), np.random.default_rng(seed))


def signature(model: Model) -> tuple[str, str]:
    """Names of the input that takes tokens and of the output with their logits.

    Raises:
        InputError: there is no such pair, or no state.
    """
    step = model.describe()["entries"].get("step", {"inputs": [], "outputs": [], "states": []})
    given = step["inputs"][: len(step["inputs"]) - len(step["states"])]
    after = {state["output"] for state in step["states"]}
    results = [t for i, t in enumerate(step["outputs"]) if i not in after and len(t["dims"]) == 3]
    if [(t["dtype"], len(t["dims"])) for t in given] != [("i64", 2)] or not results:
        raise InputError(
            f"'{model.path}' is no language model that runs step by step: that takes entries 'prefill' and 'step' with "
            "one input of tokens i64[B, L] and logits [B, L, V]"
        )
    return given[0]["name"], results[0]["name"]


def _stream(
    model: Model, tokens: str, logits: str, prompt: Sequence[int], options: tuple[float, int, float], rng: Any
) -> Iterator[int]:
    session = model.session()
    result = session.prefill(**{tokens: np.asarray([prompt], np.int64)})
    while True:
        token = choose(result[logits][0, -1], *options, rng)
        yield token
        result = session.step(**{tokens: np.asarray([[token]], np.int64)})


def choose(logits: _Array, temperature: float, top_k: int, top_p: float, rng: np.random.Generator) -> int:
    """Sample one index of ``logits [V]``."""
    if temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits.astype(np.float64), kind="stable")[: top_k or None]
    scaled = logits[order].astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[0])
    total = np.cumsum(weights)
    count = int(np.searchsorted(total, top_p * total[-1])) + 1
    place = np.searchsorted(total[:count], rng.random() * total[:count][-1], side="right")
    return int(order[min(int(place), count - 1)])
