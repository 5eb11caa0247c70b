"""The model that the programs beside this file embed: Python source, byte by byte (``../models/stdlib-mamba``)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "models" / "stdlib-mamba"


def build() -> tuple[nn.Module, tuple[()], dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """For ``coilc compile model.py:build --entries prefill,step``."""
    from transformers import MambaForCausalLM

    model = MambaForCausalLM.from_pretrained(FOLDER).eval()
    return model, (), {"input_ids": torch.zeros((1, 8), dtype=torch.int64)}, {"input_ids": {0: "B", 1: "L"}}
