"""Small seeded models of the kinds that people export, unmodified, with inputs of any size that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coilc.comparison.metrics import difference

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model to compile and compare.

    Attributes:
        module: in eval mode, weights seeded.
        dynamic_shapes: for ``coilc.export``.
        make_inputs: symbol values to keyword arguments; symbols left out take a small default.
        sizes: symbol values worth testing, from one artifact.
        output: the name of the output to look at first.
        lengths: for ``coilc.export``, where the model has a Python loop over time.
    """

    module: nn.Module
    dynamic_shapes: Mapping[str, Any]
    make_inputs: Callable[..., Inputs]
    sizes: tuple[Mapping[str, int], ...]
    output: str
    args: tuple[Any, ...] = field(default=())
    lengths: tuple[int, int] | None = None

    @property
    def kwargs(self) -> Inputs:
        """Example arguments of the smallest size."""
        return self.make_inputs(**self.sizes[0])

    def eager(self, inputs: Inputs) -> dict[str, Tensor]:
        """What the model itself returns, by output name; caches are off as they are in an export."""
        extra = {"use_cache": False} if getattr(getattr(self.module, "config", None), "use_cache", None) else {}
        with torch.no_grad():
            result = self.module(**inputs, **extra)
        return {name: value for name, value in result.items() if isinstance(value, Tensor)}

    def worst(self, run: Callable[..., Mapping[str, np.ndarray]]) -> tuple[float, str]:
        """The largest relative error of ``run``, which takes arrays by name, over all sizes and outputs; and where it is."""
        errors = []
        for size in self.sizes:
            inputs = self.make_inputs(**size)
            found = run(**{name: tensor.numpy() for name, tensor in inputs.items()})
            expected = self.eager(inputs)
            assert list(found) == list(expected)
            for name, tensor in expected.items():
                errors.append((difference(found[name], tensor.numpy()).relative_error, f"'{name}' at {size}"))
        return max(errors)


_TOKENS = 61
_SEQUENCES = ({"B": 1, "L": 1}, {"B": 2, "L": 7}, {"B": 3, "L": 33})
_BY_TOKEN = {"input_ids": {0: "B", 1: "L"}}


def _token_ids(B: int = 2, L: int = 7) -> Inputs:
    return {"input_ids": torch.randint(0, _TOKENS, (B, L), generator=torch.Generator().manual_seed(B * 1000 + L))}


def _sequence_model(module: nn.Module, output: str) -> Case:
    return Case(_jittered(module), _BY_TOKEN, _token_ids, _SEQUENCES, output)


def _jittered(module: nn.Module) -> nn.Module:
    """Every parameter moved a little, so that norms, biases and skips that start at 0 or 1 do something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def mamba() -> Case:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4)
    return _sequence_model(MambaForCausalLM(config), "logits")


def mamba2() -> Case:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=2,
        chunk_size=8, pad_token_id=0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _sequence_model(Mamba2ForCausalLM(config), "logits")


def falcon_mamba() -> Case:
    from transformers import FalconMambaConfig, FalconMambaForCausalLM

    torch.manual_seed(0)
    config = FalconMambaConfig(
        vocab_size=_TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _sequence_model(FalconMambaForCausalLM(config), "logits")


def rwkv() -> Case:
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=_TOKENS, context_length=64, hidden_size=32, num_hidden_layers=2, rescale_every=1)
    return _sequence_model(RwkvForCausalLM(config), "logits")


def bert() -> Case:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip

    def inputs(B: int = 2, L: int = 7) -> Inputs:
        mask = torch.ones(B, L, dtype=torch.int64)
        mask[B // 2 :, max(L // 2, 1) :] = 0  # padding in the later rows
        return {**_token_ids(B, L), "attention_mask": mask}

    shapes = {"input_ids": {0: "B", 1: "L"}, "attention_mask": {0: "B", 1: "L"}}
    return Case(_jittered(BertModel(config)), shapes, inputs, _SEQUENCES, "last_hidden_state")


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    return _sequence_model(GPT2LMHeadModel(config), "logits")


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    return _sequence_model(LlamaForCausalLM(config), "logits")


def mistral() -> Case:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, head_dim=8, sliding_window=5,
    )  # fmt: skip
    return _sequence_model(MistralForCausalLM(config), "logits")


def t5_encoder() -> Case:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=_TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
        relative_attention_max_distance=20, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return _sequence_model(T5EncoderModel(config), "last_hidden_state")


def _image_model(module: nn.Module, output: str) -> Case:
    def inputs(B: int = 2) -> Inputs:
        return {"pixel_values": torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(B))}

    return Case(_jittered(module), {"pixel_values": {0: "B"}}, inputs, ({"B": 1}, {"B": 3}), output)


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        num_labels=10,
    )  # fmt: skip
    return _image_model(ViTForImageClassification(config), "logits")


def convnext() -> Case:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    config = ConvNextConfig(image_size=32, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=10)
    return _image_model(ConvNextForImageClassification(config), "logits")


MODELS: Mapping[str, Callable[[], Case]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "falcon_mamba": falcon_mamba,
    "rwkv": rwkv,
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "t5_encoder": t5_encoder,
    "vit": vit,
    "convnext": convnext,
}


def _hybrid(config: str, model: str, *, lengths: tuple[int, int] | None = None, **sizes: Any) -> Callable[[], Case]:
    def build() -> Case:
        import transformers

        torch.manual_seed(0)
        common = {
            "vocab_size": _TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1,
        }  # fmt: skip
        module = getattr(transformers, model)(getattr(transformers, config)(**{**common, **sizes}))
        return replace(_sequence_model(module, "logits"), lengths=lengths)

    return build


_SSD = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 2}

_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

# Models that mix scans and attention; the capture hooks must reach every one of them.
HYBRIDS: Mapping[str, Callable[[], Case]] = {
    "jamba": _hybrid(
        "JambaConfig", "JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=100,
        expert_layer_offset=99, mamba_d_state=4, num_experts=1,
    ),
    "bamba": _hybrid("BambaConfig", "BambaForCausalLM", attn_layer_indices=[1], **_SSD),
    "falcon_h1": _hybrid("FalconH1Config", "FalconH1ForCausalLM", mamba_d_ssm=64, **_SSD),
    "granite": _hybrid(
        "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", layer_types=["mamba", "attention"], num_local_experts=0,
        num_experts_per_tok=0, shared_intermediate_size=48, **_SSD,
    ),
    "nemotron_h": _hybrid(
        "NemotronHConfig", "NemotronHForCausalLM", num_hidden_layers=3, hybrid_override_pattern="M*-", mamba_num_heads=4,
        mamba_head_dim=16, ssm_state_size=8, n_groups=2,
    ),
    "zamba2": _hybrid(
        "Zamba2Config", "Zamba2ForCausalLM", num_key_value_heads=4, num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], mamba_d_state=8, n_mamba_heads=4, mamba_ngroups=1,
        mamba_headdim=16, num_mem_blocks=1, use_shared_attention_adapter=False,
    ),
    "qwen3_next": _hybrid("Qwen3NextConfig", "Qwen3NextForCausalLM", head_dim=8, mlp_only_layers=[0, 1], **_DELTA),
    "qwen3_5": _hybrid(
        "Qwen3_5TextConfig", "Qwen3_5ForCausalLM", head_dim=32, rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1],
        }, **_DELTA,
    ),
    "olmo_hybrid": _hybrid("OlmoHybridConfig", "OlmoHybridForCausalLM", **{**_DELTA, "linear_num_key_heads": 4}),
    "kimi_linear": _hybrid(
        "KimiLinearConfig", "KimiLinearForCausalLM", num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=None,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, linear_num_heads=4, linear_head_dim=8,
        layer_types=["linear_attention", "full_attention"], mlp_layer_types=["dense", "dense"],
    ),
    "recurrent_gemma": _hybrid(
        "RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", lengths=(7, 11), num_hidden_layers=3, lru_width=32, head_dim=8,
        attention_window_size=5, block_types=["recurrent", "recurrent", "attention"],
    ),
    "lfm2": _hybrid("Lfm2Config", "Lfm2ForCausalLM", layer_types=["conv", "full_attention"]),
}  # fmt: skip

# Those that run piece by piece.
DECODERS = (
    "mamba", "mamba2", "falcon_mamba", "llama", "gpt2", "mistral", "jamba", "bamba", "falcon_h1", "granite", "nemotron_h",
    "lfm2", "zamba2", "recurrent_gemma", "qwen3_next", "olmo_hybrid", "kimi_linear",
)  # fmt: skip
