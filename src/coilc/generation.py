"""transformers' ``generate`` on an artifact: sampling, stopping and streaming are its own, every step is compiled.

::

    model = CoilForCausalLM("mamba.coil", AutoConfig.from_pretrained("examples/models/stdlib-mamba"))
    model.generate(ids, max_new_tokens=100, do_sample=True, top_k=40, streamer=streamer)

Needs transformers and torch; everything else about an artifact does without them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .runtime import InputError, Model, load
from .runtime.generate import signature

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # before 5.24


class SessionCache:
    """What ``generate`` passes from step to step: one session for all rows, or one for each, and how many tokens they saw."""

    is_compileable = False

    def __init__(self, model: Model, sessions: int) -> None:
        self.model, self.sessions, self.seen = model, [model.session() for _ in range(sessions)], 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def run(self, name: str, ids: Tensor) -> dict[str, Tensor]:
        """The next tokens [B, L], given to the input ``name``."""
        first, length = self.seen == 0, ids.shape[1]
        self.seen += length
        if len(self.sessions) == 1:
            return (self.sessions[0].step if length == 1 else self.sessions[0].prefill)(**{name: ids})
        if not first and length == 1:
            return self.model.step_all(self.sessions, **{name: ids})
        parts: list[dict[str, Tensor]] = []
        for row, session in enumerate(self.sessions):
            same = [other for other in range(row) if first and ids[other].equal(ids[row])]
            if same:  # the beams of a prompt begin as one
                self.sessions[row] = self.sessions[same[0]].fork()
            parts.append(parts[same[0]] if same else session.prefill(**{name: ids[row : row + 1]}))
        return {output: torch.cat([part[output] for part in parts]) for output in parts[0]}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i continues what row ``beam_idx[i]`` was; the first that does takes its session, others a copy."""
        places = beam_idx.tolist()
        forks = [self.sessions[p].fork() if p in places[:i] else self.sessions[p] for i, p in enumerate(places)]
        self.sessions = forks


class CoilForCausalLM(GenerationMixin):
    """A language model whose forward pass is an artifact with the entries ``prefill`` and ``step``.

    Args:
        artifact: the folder that ``coilc compile`` wrote.
        config: the model's; it has the special tokens. A ``generation_config`` may replace what follows from it.
        threads: as for ``coilc.load``.

    Raises:
        InputError: the artifact is no language model, or ``generate`` is asked for padded prompts.
    """

    main_input_name = "input_ids"
    device, dtype = torch.device("cpu"), torch.float32
    _is_stateful = True  # a session cannot drop the last tokens, so no assisted generation

    def __init__(
        self,
        artifact: str | os.PathLike[str],
        config: PretrainedConfig,
        *,
        generation_config: GenerationConfig | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = load(artifact, threads)
        self.tokens, self.logits = signature(self.model)
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes a cache

    def _optimize_model_for_decode(self) -> AbstractContextManager[None]:
        return nullcontext()  # the artifact is what it is

    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        """Rows change places between steps, so each has a session of its own."""
        return super()._beam_search(*args, **kwargs, apart=True)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, apart: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the sessions have not seen."""
        if attention_mask is not None and not attention_mask.all():
            raise InputError("padding would become part of an artifact's state; give prompts of one length per call")
        cache = kwargs.get(CACHE)
        return {"input_ids": input_ids[:, cache.seen if cache else 0 :], CACHE: cache, "apart": apart}

    def forward(self, input_ids: Tensor, apart: bool = False, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of ``input_ids`` [B, L], which continue what the cache has seen.

        Args:
            apart: begin with a session for every row, so that rows can change places.
        """
        cache = kwargs.get(CACHE) or SessionCache(self.model, len(input_ids) if apart else 1)
        logits = cache.run(self.tokens, input_ids)[self.logits]
        return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})

    __call__ = forward
