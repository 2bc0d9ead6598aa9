"""The EAGLE-3 draft head: fuse captured target states, run its layers over [embedding ; feature], predict.

Knows nothing of trees, verification, `generate` or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import ModelOutput

from .configuration_eagle3 import Eagle3Config
from .head import TREE_KNOBS, DraftHead
from .latent_attention import LatentAttention


@dataclass
class Eagle3Output(ModelOutput):
    """
    Args:
        logits (`torch.FloatTensor` `[batch, kept, draft_vocab]`): Scores over the DRAFT vocabulary.
        last_hidden_state (`torch.FloatTensor` `[batch, seq, hidden]`):
            What is fed back as `hidden_states` at the next level: the state before the final norm, or after it where
            the config says `norm_output`.
        past_key_values (`Cache`, *optional*): The head's keys and values, these rows included.
    """

    logits: torch.Tensor
    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]  # a ModelOutput may require one field only
    past_key_values: Cache | None = None


class Eagle3Attention(LlamaAttention):
    """Llama attention whose queries, keys and values read `[embedding ; hidden]` in the head's first layer, and whose
    queries and keys may have norms of their own."""

    def __init__(self, config: Eagle3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width = 2 * config.hidden_size if layer_idx == 0 else config.hidden_size
        for name in ("q_proj", "k_proj", "v_proj"):
            out = getattr(self, name).out_features
            setattr(self, name, nn.Linear(width, out, bias=config.attention_bias or config.qkv_bias))
        self.q_norm, self.k_norm = (
            LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None for _ in range(2)
        )

    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, width]` to `[batch, heads, seq, head_dim]`, not rotated yet; as `keys` and `values`."""
        return self._heads(self.q_proj(states), self.q_norm)

    def keys(self, states: torch.Tensor) -> torch.Tensor:
        return self._heads(self.k_proj(states), self.k_norm)

    def values(self, states: torch.Tensor) -> torch.Tensor:
        return self._heads(self.v_proj(states), None)

    def _heads(self, projected: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        heads = projected.unflatten(-1, (-1, self.head_dim))
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert position_embeddings is not None
        queries, keys = apply_rotary_pos_emb(
            self.queries(hidden_states), self.keys(hidden_states), *position_embeddings
        )
        values = self.values(hidden_states)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, queries, keys, values, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(mixed.flatten(2)), weights


class Eagle3DecoderLayer(GradientCheckpointingLayer):
    """One decoder layer. The first normalises embedding and hidden state apart and reads both; its residual is the
    un-normed hidden state (official `cnets.py`), unless the config says `norm_before_residual`."""

    def __init__(self, config: Eagle3Config, layer_idx: int) -> None:
        super().__init__()
        attention: Any = Eagle3Attention if config.kv_lora_rank is None else LatentAttention
        self.self_attn = attention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if layer_idx == 0 else None
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm_before_residual = config.norm_before_residual and layer_idx == 0

    def forward(self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        read, residual = self.inputs(hidden_states, inputs_embeds)
        return self.after_attention(residual, self.self_attn(hidden_states=read, **kwargs)[0])

    def inputs(self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention reads, `[batch, seq, hidden or 2 * hidden]`, and the residual, `[batch, seq, hidden]`."""
        if self.hidden_norm is None:
            return self.input_layernorm(hidden_states), hidden_states
        normed = self.hidden_norm(hidden_states)
        read = torch.cat((self.input_layernorm(inputs_embeds), normed), dim=-1)
        return read, normed if self.norm_before_residual else hidden_states

    def after_attention(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output, all `[batch, seq, hidden]`."""
        hidden_states = residual + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Eagle3PreTrainedModel(DraftHead):
    """What transformers must know of a head: its config, what cannot be split."""

    config_class = Eagle3Config
    _no_split_modules: ClassVar[list[str]] = ["Eagle3DecoderLayer"]


class Eagle3DraftModel(Eagle3PreTrainedModel):
    """
    An EAGLE-3 draft head (arXiv 2503.01840), loaded and saved like any transformers model.

    Row `t` of a forward pairs the target's fused feature `f_t` with the embedding of token `x_{t+1}` at RoPE position
    `t`, and predicts `x_{t+2}`. Embeddings absent from a checkpoint are the target's: see [`input_embeddings_for`].

    ```python
    >>> head = Eagle3DraftModel.from_pretrained("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", dtype=torch.bfloat16)
    >>> target.generate(**inputs, assistant_model=head)
    ```
    """

    d2t: torch.Tensor
    t2d: torch.Tensor
    if TYPE_CHECKING:  # transformers would take a string annotation of `config` for the class itself
        config: Eagle3Config

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config)
        sizes: Any = config  # the optional ones are filled in once a config exists
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embeddings else None
        width, boundaries = sizes.target_hidden_size, sizes.num_target_boundaries
        norm = partial(LlamaRMSNorm, eps=config.rms_norm_eps)
        self.input_norm = norm(boundaries * width) if config.norm_before_fc else None
        self.fc_norm = nn.ModuleList([norm(width) for _ in range(boundaries)]) if config.fc_norm else None
        # What stands for the target's states in a slot that has none yet; `masked_slot` is what the layers read of it.
        slot = torch.zeros(1, 1, boundaries * width) if config.parallel_drafting else None
        self.mask_hidden = None if slot is None else nn.Parameter(slot)
        self.fc = None if config.reads_last_hidden_state else nn.Linear(boundaries * width, config.hidden_size, False)
        self.layers = nn.ModuleList([Eagle3DecoderLayer(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = norm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, sizes.draft_vocab_size, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.register_buffer("d2t", torch.zeros(sizes.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(config.vocab_size) < sizes.draft_vocab_size)
        self.post_init()

    # ------------------------------------------------------------------ forward

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """Captured states `[batch, seq, boundaries * target_hidden]`, concatenated in layer order, to `[batch, seq,
        hidden]`. Never applied to the head's own fed-back states."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return features if self.fc is None else self.fc(features)

    def masked_slot(self) -> torch.Tensor:
        """What a head that drafts in parallel reads instead of a feature where the target has not been yet, `[1, 1,
        hidden]`: its learned states, fused like the target's (P-EAGLE, arXiv:2602.01469; vLLM#32887).

        Raises:
            ValueError: if the head does not draft in parallel.
        """
        if self.mask_hidden is None:
            raise ValueError("The head drafts level by level (`parallel_drafting` is False) and has no masked slots.")
        return self.fuse(self.mask_hidden)

    def fed_back(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the next level reads of the last layer's output `[batch, seq, hidden]`."""
        return self.norm(hidden_states) if self.config.norm_output else hidden_states

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Eagle3Output:
        """
        Args:
            hidden_states (`[batch, seq, hidden]`): Fused features, or the fed-back `last_hidden_state`.
            input_ids (`[batch, seq]`, int64): TARGET ids of the tokens one position later. Needs own embeddings.
            inputs_embeds (`[batch, seq, hidden]`): Their embeddings instead, where the head has none of its own.
            position_ids (`[batch, seq]`): Position of the feature; counted on from the cache if not given.
            attention_mask: `None` (causal), `[batch, keys]` padding, or 4D additive, used as it is.
            past_key_values: The head's cache, extended in place.
            logits_to_keep (`int`): Score only the last so many rows; 0 for all.

        Raises:
            ValueError: if neither ids with own embeddings nor `inputs_embeds` are given, or both are.
        """
        embeds = self.embedded(input_ids, inputs_embeds).to(hidden_states.dtype)
        around = self.surroundings(hidden_states, position_ids, attention_mask, past_key_values, use_cache)
        for layer in self.layers:
            hidden_states = layer(hidden_states, inputs_embeds=embeds, **around)
        fed_back = self.fed_back(hidden_states)
        scored = fed_back[:, -logits_to_keep:]
        return Eagle3Output(
            logits=self.lm_head(scored if self.config.norm_output else self.norm(scored)),
            last_hidden_state=fed_back,
            past_key_values=around["past_key_values"] if self.caches(use_cache) else None,
        )

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


__all__ = ["TREE_KNOBS", "Eagle3DraftModel", "Eagle3Output", "Eagle3PreTrainedModel"]
