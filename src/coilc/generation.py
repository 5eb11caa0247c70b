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

from .runtime import InputError, Session, load
from .runtime.generate import signature


class SessionCache:
    """What ``generate`` passes from step to step: a session, and how many tokens it has seen."""

    is_compileable = False

    def __init__(self, session: Session) -> None:
        self.session, self.seen = session, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise InputError("an artifact's session cannot reorder its rows, so there is no beam search; use num_beams=1")


class CoilForCausalLM(GenerationMixin):
    """A language model whose forward pass is an artifact with the entries ``prefill`` and ``step``.

    Args:
        artifact: the folder that ``coilc compile`` wrote.
        config: the model's; it has the special tokens. A ``generation_config`` may replace what follows from it.
        threads: as for ``coilc.load``.

    Raises:
        InputError: the artifact is no language model, or ``generate`` is asked for padded prompts or beams.
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

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: SessionCache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The tokens that the session has not seen."""
        if attention_mask is not None and not attention_mask.all():
            raise InputError("padding would become part of an artifact's state; give prompts of one length per call")
        seen = past_key_values.seen if past_key_values else 0
        return {"input_ids": input_ids[:, seen:], "past_key_values": past_key_values}

    def forward(
        self, input_ids: Tensor, past_key_values: SessionCache | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, V] of ``input_ids`` [B, L], which continue what the cache has seen."""
        cache = past_key_values or SessionCache(self.model.session())
        length = input_ids.shape[1]
        run = cache.session.step if length == 1 else cache.session.prefill
        logits = run(**{self.tokens: input_ids})[self.logits]
        cache.seen += length
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    __call__ = forward
