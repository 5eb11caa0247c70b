"""The driver: from a program to an artifact, stage by stage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from coilc.ir import InputError, Module, print_module
from coilc.passes.choose_algorithms import describe_choices
from coilc.passes.pipeline import run_pipeline
from coilc.passes.transform_long_convs import describe_transforms
from coilc.runtime.artifact import DEVICE_CODE, GRAPH, KERNELS, LIBRARY, PLAN, TOKENIZER, WEIGHTS

from .artifact import describe_plan, describe_target, new_artifact, state_identity, tool_versions, write_manifest
from .build import BuildInfo, build_object, oldest_driver
from .emit_plan import emit_plan
from .link import link_library
from .plan import Plan, make_plan
from .target import Target, parse_target
from .weights import plan_layout, write_weights

Progress = Callable[[str, float | None], None]
Build = Callable[[Mapping[str, Any], Target, Path], BuildInfo]


def compile(
    program: Any,
    path: str | os.PathLike[str],
    target: str = "native",
    entries: Sequence[str] | None = None,
    algorithm: str | None = None,
    context: int | None = None,
    precision: str = "fp32",
    quantize: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile a program into an artifact.

    Args:
        program: a ``Module``, an ``ExportedProgram``, or the path of a ``.pt2`` file.
        path: the folder to write; it appears complete or not at all. An artifact that is already there is replaced,
            anything else is left alone.
        target: a name from ``coilc targets``; ``native`` is this machine.
        entries: which entries to build, by default those of the program. ``prefill`` and ``step`` are derived from
            ``main`` when the program does not have them: the same model, run piece by piece.
        algorithm: how every recurrence runs: ``sequential``, ``chunked`` or ``associative``. By default a cost model chooses
            for each; ``coilc inspect`` shows what and why.
        context: how many elements a sequence may have in ``prefill`` and ``step`` where attention keeps them all: the size of
            its caches. By default what the length may be, 4096 at most.
        precision: ``fp32``, or ``bf16`` or ``fp16``: weights and what kernels pass on are stored so. Inputs, outputs, states,
            decays and all arithmetic stay as the program has them.
        quantize: ``int8`` or ``int4``: weights of products are stored so, and activations are rounded to eight bits for them.
        tokenizer: a ``tokenizer.json`` that goes into the artifact, for ``coilc generate``.
        progress: called with each stage's name and ``None`` when it starts, with its seconds when it has ended.

    Returns:
        ``path``.

    Raises:
        CoilError: whatever is wrong with the program, the target or the path, in one sentence.
    """
    report, chosen, place = _Stages(progress), parse_target(target), Path(path)
    if chosen.device:
        oldest_driver()  # a compiler that is missing is named now, not after minutes of passes
    files = {} if tokenizer is None else {TOKENIZER: _json(Path(tokenizer))}
    with report("import"):
        module = _select(_module(program), entries)
    with report("passes"):
        recurrences: list[Mapping[str, Any]] = []

        def watch(stage: str, specialised: Module) -> None:
            if stage == "specialise":
                recurrences.extend(describe_choices(specialised, chosen.machine, algorithm))
                recurrences.extend(describe_transforms(specialised, chosen.claims))

        scheduled = run_pipeline(
            module,
            chosen.claims,
            entries=entries or (),
            context=context,
            machine=chosen.machine,
            algorithm=algorithm,
            precision=precision,
            quantize=quantize,
            observe=watch,
        )
    with report("plan"):
        plan = make_plan(scheduled, module)
    options = {
        "target": target, "entries": list(scheduled.entries), "algorithm": algorithm, "context": context,
        "precision": precision, "quantize": quantize,
    }  # fmt: skip
    about = {"options": options, "recurrences": recurrences}
    return write_artifact(plan, chosen, place, text=print_module(scheduled), about=about, files=files, report=report)


def write_artifact(
    plan: Plan,
    target: Target,
    path: Path,
    *,
    text: str = "",
    about: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    report: _Stages | None = None,
    build: Build = build_object,
) -> Path:
    """Build, link and write a plan.

    Args:
        text: the IR text that goes into the artifact for people to read.
        about: further fields of the manifest: what the user asked for, how recurrences run.
        files: content of further files, by name.
        build: makes the object file with every kernel of the plan.
    """
    report = report or _Stages(None)
    layout = plan_layout(plan.weights)
    with new_artifact(path) as folder:
        with report("kernels"):
            info = build(plan.kernels, target, folder / KERNELS) if plan.kernels else BuildInfo(0, {})
        with report("write"):
            digest = write_weights(folder / WEIGHTS, plan.weights, layout)
        with report("link"):
            identity = state_identity(plan, digest)
            launches = (target.device, info.launches, info.driver)
            (folder / PLAN).write_text(emit_plan(plan, layout, info.scratch_bytes, identity, *launches))
            objects = [folder / KERNELS] if plan.kernels else []
            code = folder / DEVICE_CODE if info.launches else None
            library = folder / LIBRARY
            link_library(folder / PLAN, objects, library, target.triple, kind=target.kind, device_code=code)
        (folder / GRAPH).write_text(text)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        machine = describe_target(target, info.driver)
        found = {"options": {}, **(about or {}), "target": machine, "tools": tool_versions()}
        write_manifest(folder, found | describe_plan(plan, layout, info.scratch_bytes), {WEIGHTS: digest})
    return path


class _Stages:
    """Times named stages and tells whoever watches."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress or (lambda stage, seconds: None)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.progress(stage, None)
        start = time.perf_counter()
        yield
        self.progress(stage, time.perf_counter() - start)


def _module(program: Any) -> Module:
    if isinstance(program, Module):
        return program
    # Looked up when needed, because this layer must work, and import, without any frontend.
    module: Module = import_module("coilc.frontend.torch_export").import_program(program)
    return module


def _json(path: Path) -> bytes:
    """The content of a JSON file, before anything slow is done for nothing."""
    try:
        content = path.read_bytes()
        json.loads(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no tokenizer.json: {error}") from None
    return content


def _select(module: Module, entries: Sequence[str] | None) -> Module:
    """Drop entries that nothing is made from; the pipeline derives the missing ones."""
    if entries is None or any(name not in module.entries for name in entries):
        return module
    return Module({name: module.entries[name] for name in entries}, module.weights)
