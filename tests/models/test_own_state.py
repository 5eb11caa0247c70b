"""Models that bring their own cache: updated buffers, declared pairs of input and output, transformers' cache objects."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import coilc
from coilc.cli import app
from coilc.comparison.eager import tensors_in
from coilc.comparison.metrics import TOLERANCE

WIDTH = 6


class Filter(nn.Module):
    """A recurrence over x [B, L, D] that goes on where the last call ended; the first starts from the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.zeros(2, 1, WIDTH))
        self.register_buffer("mean", torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.cat([self.window, x], 1)
        self.window.copy_(x[:, -1:])
        y = torch.cumsum(torch.tanh(self.inner(shifted[:, :-1])), 1) + self.mean[:, None] + x
        self.mean.copy_(y[:, -1])
        return y


class Cell(nn.Module):
    """A step that takes its state and returns the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, 5)

    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        after = self.cell(x, h)
        return {"y": after.sin(), "h_next": after}


def test_updated_buffers_are_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Filter().eval(), torch.randn(2, 12, WIDTH)
    program = coilc.export(module, (x,), dynamic_shapes={"x": {1: "L"}})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("prefill", "step")), threads=1)
    assert {state["name"] for state in model.describe()["states"]} == {"window", "mean", "started"}
    session, eager = model.session(), copy.deepcopy(module)
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 11), (11, 12)):
            run = session.step if stop - start == 1 else session.prefill
            found = run(x=x[:, start:stop].numpy())["out"]
            np.testing.assert_allclose(found, eager(x[:, start:stop]).numpy(), rtol=1e-5, atol=1e-5)
    session.reset()
    np.testing.assert_allclose(session.prefill(x=x.numpy())["out"], module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_declared_pairs_are_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Cell().eval(), torch.randn(7, 3, WIDTH)
    shapes = {"x": {0: "B"}, "h": {0: "B"}}
    example = (x[0], torch.zeros(3, 5))
    program = coilc.export(module, example, dynamic_shapes=shapes, states={"h": "h_next"})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("main", "step")), threads=1)
    session, h = model.session(history=2), torch.zeros(3, 5)
    with torch.no_grad():
        for row in x:
            result = module(row, h)
            h = result["h_next"]
            np.testing.assert_allclose(session.step(x=row.numpy())["y"], result["y"].numpy(), rtol=1e-5, atol=1e-6)
        direct = model(x=x[0].numpy(), h=example[1].numpy())  # whoever likes to keep the state still can
        np.testing.assert_allclose(direct["h_next"], module(*example)["h_next"].numpy(), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    module, shapes = Cell().eval(), {"x": {0: "B"}, "h": {0: "B"}}
    args = (torch.zeros(2, WIDTH), torch.zeros(2, 5))
    for states, sentence in (
        ({"hh": "h_next"}, "there is no input 'hh' to be a state; it has x, h"),
        (
            {"x": "h_next"},
            r"input 'x' is f32\[B, 6\] and the output 'h_next' f32\[B, 5\]: a state keeps its size, or grows",
        ),
        ({"h": "next"}, "there is no output 'next' to be a state; it has y, h_next"),
    ):
        with pytest.raises(coilc.CoilError, match=sentence):
            coilc.export(module, args, dynamic_shapes=shapes, states=states)
    program = coilc.export(module, args, dynamic_shapes=shapes, states={"h": "h_next"})
    with pytest.raises(coilc.CoilError, match="or ask for 'step' alone, which is what 'main' does"):
        coilc.compile(program, tmp_path / "m.coil", entries=("prefill", "step"))


def test_the_static_cache_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from models import zoo
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    case, length = zoo.llama(), 12
    config = case.module.generation_config
    config.use_cache, config.cache_implementation = True, "static"
    config.cache_config = {"batch_size": 1, "max_cache_len": 16, "device": "cpu"}
    module = TorchExportableModuleWithStaticCache(case.module)
    token, place = torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    program = coilc.export(module, (), {"input_ids": token, "cache_position": place})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("step",)), threads=1)
    assert {"key_cache_0", "value_cache_1"} <= {state["name"] for state in model.describe()["states"]}
    ids, session = case.make_inputs(B=1, L=length)["input_ids"], model.session()
    steps = [session.step(input_ids=ids[:, t : t + 1], cache_position=torch.tensor([t]))["out"] for t in range(length)]
    torch.testing.assert_close(torch.cat(steps, 1), case.eager({"input_ids": ids})["logits"], rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    """Causal self-attention over x [B, L, D] that takes its past as keys and values [B, H, P, E] and returns it longer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.leave = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, past: dict[str, Tensor]) -> dict[str, Tensor | dict[str, Tensor]]:
        seen, length = past["keys"].shape[2], x.shape[1]
        q, k, v = (m.unflatten(-1, (2, 4)).transpose(1, 2) for m in self.mix(x).chunk(3, -1))
        k, v = torch.cat([past["keys"], k], 2), torch.cat([past["values"], v], 2)
        place = torch.arange(length)[:, None] + seen
        causal = torch.arange(seen + length)[None] <= place
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        return {"y": self.leave(y.transpose(1, 2).flatten(2)) + place, "present": {"keys": k, "values": v}}


def empty(batch: int, length: int = 0) -> dict[str, Tensor]:
    return {name: torch.zeros(batch, 2, length, 4) for name in ("keys", "values")}


def test_a_cache_that_grows_is_a_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(2, 9, 8)
    shapes = {"x": {0: "B", 1: "L"}, "past": {key: {0: "B", 2: "past_length"} for key in ("keys", "values")}}
    program = coilc.export(module, (x, empty(2, 3)), dynamic_shapes=shapes, states={"past": "present"})
    path = coilc.compile(program, tmp_path / "m.coil", entries=("main", "prefill", "step"), context=12)
    model, whole = coilc.load(path, threads=1), module(x, empty(2))["y"].detach().numpy()
    assert [s["name"] for s in model.describe()["states"] if s["kept"]] == ["keys", "values"]
    for cut in range(1, 9):
        session = model.session()
        parts = [session.prefill(x=piece)["y"] for piece in np.split(x.numpy(), [cut], 1)]
        np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-5)
    session = model.session()
    steps = [session.step(x=x[:, t : t + 1].numpy())["y"] for t in range(9)]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(coilc.runtime.RunError, match="has 9 elements and would get 4 more, the model has room for 12"):
        session.prefill(x=x[:, :4].numpy())
    past = {f"past_{name}": value.numpy() + 1 for name, value in empty(2, 3).items()}  # by hand, the cache is as it was
    expected = module(x, {name: value + 1 for name, value in empty(2, 3).items()})
    found = model(x=x.numpy(), **past)
    for name, value in {"y": expected["y"], "present.keys": expected["present"]["keys"]}.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_an_exported_step_with_its_past(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(2, 9, 8)
    past = torch.export.Dim("past", min=2)
    shapes = {"x": None, "past": {key: {2: past} for key in ("keys", "values")}}
    exported = torch.export.export(module, (x[:, :1], empty(2, 3)), dynamic_shapes=shapes, strict=False)
    torch.export.save(exported, tmp_path / "step.pt2")
    path = tmp_path / "step.coil"
    options = ["--state", "past=present", "--entries", "step", "--context", "9", "-o", str(path)]
    assert CliRunner().invoke(app, ["compile", str(tmp_path / "step.pt2"), *options]).exit_code == 0
    session, whole = coilc.load(path, threads=1).session(), module(x, empty(2))["y"].detach().numpy()
    steps = [session.step(x=x[:, t : t + 1].numpy())["y"] for t in range(9)]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, rtol=1e-5, atol=1e-5)


def test_states_begin_with_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x, start = Cell().eval(), torch.randn(3, 4, WIDTH), torch.linspace(-1, 1, 5)
    shapes = {"x": {0: "B"}, "h": {0: "B"}}
    program = coilc.export(
        module, (x[0], torch.zeros(4, 5)), dynamic_shapes=shapes, states={"h": "h_next"}, initial={"h": start}
    )
    session = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("step",)), threads=1).session()
    for _ in range(2):
        h = start.expand(4, 5)
        for row in x:
            result = module(row, h)
            h = result["h_next"]
            found = session.step(x=row.numpy())["y"]
            np.testing.assert_allclose(found, result["y"].detach().numpy(), rtol=1e-5, atol=1e-6)
        session.reset()
    for initial, sentence in (
        ({"x": start}, "'x' is no state that could begin with a value; there are h"),
        ({"h": start[:3]}, r"the state 'h' is f32\[B, 5\] and cannot begin with f32\[3\]"),
    ):
        with pytest.raises(coilc.CoilError, match=sentence):
            coilc.export(
                module, (x[0], torch.zeros(4, 5)), dynamic_shapes=shapes, states={"h": "h_next"}, initial=initial
            )


# Tokens of the traced call: one is a step, more are a call of any length. Llama's is traced with its cache, Jamba's without.
CACHED = (("llama", 1), ("mistral", 1), ("mamba", 1), ("mamba2", 1), ("qwen3_next", 1), ("mistral", 4), ("jamba", 4))


@pytest.mark.parametrize(("name", "tokens"), CACHED)
def test_cache_objects_of_transformers(tmp_path: Path, name: str, tokens: int) -> None:
    """What is traced with a cache, a step or a call of any length, equals the model without one."""
    pytest.importorskip("transformers")
    from models import zoo
    from transformers import DynamicCache

    case, length = {**zoo.MODELS, **zoo.HYBRIDS}[name](), 9
    ids = case.make_inputs(B=2, L=length)["input_ids"]
    whole = case.eager({"input_ids": ids})["logits"].numpy()
    cache, start = DynamicCache(config=case.module.config), tokens - 1
    given = {"input_ids": ids[:, : start + 1], "cache": cache, "use_cache": True}
    shape, entries = ({0: "B", 1: "L"}, ("prefill", "step")) if start else ({0: "B"}, ("step",))
    program = coilc.export(case.module, (), given, dynamic_shapes={"input_ids": shape})
    path = coilc.compile(program, tmp_path / "m.coil", entries=entries, context=length)
    session = coilc.load(path, threads=1).session()
    found = [session.prefill(input_ids=ids[:, :start])["logits"]] if start else []
    found += [session.step(input_ids=ids[:, t : t + 1])["logits"] for t in range(start, length)]
    error = np.linalg.norm(np.concatenate(found, 1) - whole) / np.linalg.norm(whole)
    assert error <= TOLERANCE["float32"]
    assert not any(getattr(layer, "is_initialized", False) for layer in cache.layers)  # it was only an example


def test_a_static_cache_as_an_argument(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from models import zoo
    from transformers import StaticCache

    case, length = zoo.llama(), 9
    ids = case.make_inputs(B=1, L=length)["input_ids"]
    cache = StaticCache(config=case.module.config, max_cache_len=12)
    program = coilc.export(case.module, (), {"input_ids": ids[:, :1], "cache": cache})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("step",)), threads=1)
    session = model.session()
    found = [session.step(input_ids=ids[:, t : t + 1])["logits"] for t in range(length)]
    torch.testing.assert_close(torch.cat(found, 1), case.eager({"input_ids": ids})["logits"], rtol=1e-4, atol=1e-5)


def test_what_a_cache_cannot_be() -> None:
    pytest.importorskip("transformers")
    from models import zoo
    from transformers import DynamicCache, EncoderDecoderCache, StaticCache

    case, ids = zoo.mistral(), torch.ones(1, 1, dtype=torch.int64)
    empty_cache, window = DynamicCache(), StaticCache(config=case.module.config, max_cache_len=12)
    for args, kwargs, shapes, sentence in (
        ((ids, None, None, empty_cache), {}, None, "pass the cache by its name, not by position"),
        ((ids,), {"cache": empty_cache}, ({0: "B"},), "give dynamic_shapes by name"),
        ((ids,), {"cache": empty_cache}, {"cache": {0: "B"}}, "leave 'cache' out of dynamic_shapes"),
        ((ids,), {"cache": window}, None, "a static cache of a sliding window counts in Python; pass a DynamicCache"),
        (
            (ids,),
            {"cache": EncoderDecoderCache(DynamicCache(), DynamicCache())},
            None,
            "pass a DynamicCache or a StaticCache",
        ),
    ):
        with pytest.raises(coilc.CoilError, match=sentence):
            coilc.export(case.module, args, kwargs, dynamic_shapes=shapes)


def held_by(cache: Any) -> list[Tensor]:
    return tensors_in([vars(layer) for layer in cache.layers])


# The traced call's tokens, and whether the artifact's ``main`` takes the cache.
COMPARED = (("llama", 1, True), ("llama", 3, True), ("mamba", 1, True), ("mamba", 3, False))


@pytest.mark.parametrize(("name", "tokens", "takes"), COMPARED)
def test_a_comparison_takes_cache_objects(tmp_path: Path, name: str, tokens: int, takes: bool) -> None:
    pytest.importorskip("transformers")
    from models import zoo
    from transformers import DynamicCache

    case = zoo.MODELS[name]()
    ids = case.make_inputs(B=2, L=9)["input_ids"]
    empty, filled = (DynamicCache(config=case.module.config) for _ in range(2))
    with torch.no_grad():
        case.module(input_ids=ids[:, :5], cache=filled, use_cache=True)
    shapes = {"input_ids": {0: "B"} if tokens == 1 else {0: "B", 1: "L"}}
    call = {"input_ids": ids[:, 5 : 5 + tokens], "cache": empty}
    path = coilc.compile(coilc.export(case.module, (), call, dynamic_shapes=shapes), tmp_path / "m.coil")
    report = coilc.compare(case.module, path, (), call, dynamic_shapes=shapes, runs=0)
    assert report.ok, str(report)
    assert any(row.name.startswith("cache.") for row in report.outputs) == (takes and name == "llama")
    assert len(report.layers) > 10
    if takes:
        before = copy.deepcopy(held_by(filled))
        assert coilc.compare(case.module, path, (), {**call, "cache": filled}, dynamic_shapes=shapes, runs=0).ok
        assert all(map(torch.equal, held_by(filled), before))  # both sides worked on copies
    else:
        with pytest.raises(coilc.InputError, match="the entry starts a sequence and takes no 'cache'"):
            coilc.compare(case.module, path, (), {**call, "cache": filled}, dynamic_shapes=shapes, runs=0)
