"""transformers' ``generate`` on an artifact gives what it gives on the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import MambaForCausalLM

import coilc
from coilc.generation import CoilForCausalLM

TRAINED = Path(__file__).resolve().parents[2] / "examples" / "models" / "stdlib-mamba"
PROMPT = b"def read_lines(path):\n    "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[CoilForCausalLM, Any]:
    eager = MambaForCausalLM.from_pretrained(TRAINED).eval()
    program = coilc.export(
        eager, (torch.ones(2, 8, dtype=torch.int64),), dynamic_shapes={"input_ids": {0: "B", 1: "L"}}
    )
    path = coilc.compile(program, tmp_path_factory.mktemp("lm") / "lm.coil", entries=("prefill", "step"))
    return CoilForCausalLM(path, eager.config, threads=1), eager


def prompts(*texts: bytes) -> torch.Tensor:
    return torch.tensor([list(text) for text in texts])


def test_greedy_tokens_are_those_of_eager(models: tuple[CoilForCausalLM, Any]) -> None:
    compiled, eager = models
    found, expected = (m.generate(prompts(PROMPT), max_new_tokens=100, do_sample=False) for m in (compiled, eager))
    assert found.shape[1] == len(PROMPT) + 100
    assert torch.equal(found, expected)


def test_samples_are_seeded_and_rows_independent(models: tuple[CoilForCausalLM, Any]) -> None:
    compiled, _ = models

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return compiled.generate(
            prompts(PROMPT, PROMPT[::-1]),
            max_new_tokens=12,
            do_sample=True,
            top_k=20,
            temperature=0.8,
            num_return_sequences=2,
        )

    assert sample(0).shape == (4, len(PROMPT) + 12)
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_scores_and_stop_tokens(models: tuple[CoilForCausalLM, Any]) -> None:
    compiled, eager = models
    stop = int(eager.generate(prompts(PROMPT), max_new_tokens=9, do_sample=False)[0, -1])
    options = {"max_new_tokens": 60, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    found, expected = (m.generate(prompts(PROMPT), eos_token_id=stop, **options) for m in (compiled, eager))
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.scores) <= 9
    torch.testing.assert_close(torch.cat(found.scores), torch.cat(expected.scores), rtol=1e-4, atol=1e-4)


def test_beams_are_those_of_eager(models: tuple[CoilForCausalLM, Any]) -> None:
    compiled, eager = models
    options = {"max_new_tokens": 20, "num_beams": 4, "num_return_sequences": 2, "return_dict_in_generate": True}
    texts = prompts(PROMPT, PROMPT.replace(b"read", b"find"))
    found, expected = (m.generate(texts, output_scores=True, **options) for m in (compiled, eager))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)


def test_every_step_continues_the_session(models: tuple[CoilForCausalLM, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, _ = models
    lengths, forward = [], CoilForCausalLM.forward

    def watched(self: CoilForCausalLM, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(CoilForCausalLM, "__call__", watched)
    compiled.generate(prompts(PROMPT), max_new_tokens=5)
    assert lengths == [len(PROMPT), 1, 1, 1, 1]


def test_what_a_session_cannot_do(models: tuple[CoilForCausalLM, Any]) -> None:
    compiled, _ = models
    mask = torch.tensor([[0, 1, 1]])
    with pytest.raises(coilc.InputError, match="padding would become part"):
        compiled.generate(prompts(b"abc"), attention_mask=mask, max_new_tokens=3)
