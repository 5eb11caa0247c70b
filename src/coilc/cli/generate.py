"""``coilc generate``."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.text import Text

from coilc.ir import InputError
from coilc.runtime.artifact import TOKENIZER

from .console import console, emit_json
from .options import Artifact, Json, Threads

if TYPE_CHECKING:
    from coilc.runtime import Model

Decode = Callable[[int], str]


def generate_command(
    artifact: Artifact,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to continue.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="How many tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample among so many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample among those that together are so probable.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    stop: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates this on Python 3.10
        typer.Option("--stop", help="End when the text has this in it; may be given several times."),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue a text with a language model that was compiled with --entries prefill,step.

    Text is cut into tokens by the tokenizer.json in the artifact, or into bytes when there is none.
    """
    from coilc.runtime import load
    from coilc.runtime.generate import generate

    if not all(stop or ()):
        raise InputError("--stop needs a text, which an empty one is not")
    model = load(artifact, threads)
    ids, decode = tokenizer(artifact, prompt, vocabulary(model))
    check_room(model, len(ids), tokens)
    began, text, count = time.perf_counter(), "", 0
    stream = generate(model, ids, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    first = next(stream)
    prefilled = time.perf_counter()
    if not json:
        console().print(Text(prompt, "dim"), end="", soft_wrap=True)
    for token in chain([first], islice(stream, tokens - 1)):
        count += 1
        text += show(decode(token), quiet=json)
        if any(word in text for word in stop or ()):
            break
    ended = time.perf_counter()
    rates = {"prompt_tokens": len(ids), "prompt_per_s": len(ids) / (prefilled - began), "tokens": count}
    rates |= {"tokens_per_s": (count - 1) / (ended - prefilled) if count > 1 else 0.0}
    if json:
        emit_json({"text": text, **rates})
        return
    typer.echo()
    note = "{prompt_tokens} tokens of prompt at {prompt_per_s:.0f}/s, {tokens} generated at {tokens_per_s:.0f}/s"
    console(stderr=True).print(note.format(**rates), markup=False)


def show(text: str, *, quiet: bool) -> str:
    """Write text as it comes, unless it is only collected."""
    if not quiet:
        typer.echo(text, nl=False)
    return text


def check_room(model: Model, prompt: int, tokens: int) -> None:
    """That caches which keep everything have room for all tokens; the last one is shown and not read."""
    room = min((state["dims"][2] for state in model.describe()["states"] if state["kept"]), default=None)
    if room is not None and prompt + tokens - 1 > room:
        raise InputError(
            f"{prompt} tokens of prompt and {tokens} more need room for {prompt + tokens - 1}, and '{model.path}' has it for "
            f"{room}; ask for fewer --tokens, or compile it with a larger --context"
        )


def vocabulary(model: Model) -> int:
    """How many tokens the model knows."""
    from coilc.runtime.generate import signature

    _, logits = signature(model)
    outputs = model.describe()["entries"]["step"]["outputs"]
    return int(next(t["dims"][-1] for t in outputs if t["name"] == logits))


def tokenizer(artifact: Path, prompt: str, size: int) -> tuple[list[int], Decode]:
    """The prompt's tokens, and a function from each next token to the text that it completes."""
    try:
        raw = prompt.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is no text in UTF-8") from None
    if (artifact / TOKENIZER).is_file():
        return from_file(artifact / TOKENIZER, prompt)
    if size < 256:
        raise InputError(f"{artifact} knows {size} tokens and has no {TOKENIZER}, so text cannot be cut into tokens")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return list(raw), lambda token: decoder.decode(bytes([token])) if token < 256 else ""


def from_file(path: Path, prompt: str) -> tuple[list[int], Decode]:
    """The same with the ``tokenizers`` library."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(f"{path} needs the package 'tokenizers': pip install tokenizers") from None
    reader = Tokenizer.from_file(str(path))
    return list(reader.encode(prompt).ids), growing(reader.decode)


def growing(decode: Callable[[list[int]], str]) -> Decode:
    """What each token adds to the text of all; an unfinished character waits for its rest."""
    seen: list[int] = []
    shown = [""]

    def add(token: int) -> str:
        seen.append(token)
        text = decode(seen)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, shown[0] = text[len(shown[0]) :], text
        return new

    return add
