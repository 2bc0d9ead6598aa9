"""Latent attention (MLA) for a head: DeepSeek's, whose down projections read [embedding ; hidden] in the first layer.

Where each rule comes from:

- the shapes, 2H wide in layer 0: vLLM `deepseek_eagle3.py` (`input_size=2 * hidden_size`), SGLang's DeepSeek EAGLE-3
  model, TensorRT-LLM#9677; a head without `q_lora_rank` has one `q_proj` instead (the same three);
- rotation of neighbouring pairs: vLLM `deepseek_v2.py` (`is_neox_style=False`), SpecForge#640, NeMo Automodel#2849,
  and transformers' own `DeepseekV3Attention` under `rope_interleave`, which this is made of;
- softmax scale `(nope + rope) ** -0.5`, times the square of `mscale_all_dim`'s share under YaRN: the same places;
- norms of both latents with the config's `rms_norm_eps`: vLLM and SGLang. transformers fixes 1e-6 there, which is
  also what released DeepSeek configs say.

Whether NVIDIA's exporter trained with one or the other epsilon is not written down anywhere that could be read.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RMSNorm

from .configuration_eagle3 import Eagle3Config


class LatentAttention(DeepseekV3Attention):
    """DeepSeek's attention with a cache of latents; in layer 0 it reads `[batch, seq, 2 * hidden]`."""

    def __init__(self, config: Eagle3Config, layer_idx: int) -> None:
        given: Any = config  # Eagle3Config has every field that is read of DeepSeek's
        super().__init__(given, layer_idx)
        self.q_a_layernorm, self.kv_a_layernorm = (
            None if rank is None else DeepseekV3RMSNorm(rank, eps=config.rms_norm_eps)
            for rank in (config.q_lora_rank, config.kv_lora_rank)
        )
        if layer_idx == 0:
            for name in ("q_proj", "q_a_proj", "kv_a_proj_with_mqa"):
                plain = getattr(self, name)
                if plain is not None:
                    wide = nn.Linear(2 * config.hidden_size, plain.out_features, bias=plain.bias is not None)
                    setattr(self, name, wide)
