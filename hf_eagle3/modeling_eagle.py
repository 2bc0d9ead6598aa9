"""The EAGLE-1 draft head, which is EAGLE-2's and HASS's too: join embedding and feature, run a decoder layer, let the
target's output embeddings predict.

Knows nothing of trees, verification, `generate` or files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .configuration_eagle import EagleConfig
from .head import DraftHead
from .modeling_eagle3 import Eagle3Output


class EagleDecoderLayer(LlamaDecoderLayer):
    """A Llama layer, the first without a norm before its attention, and with Qwen2's biases where the config has
    them."""

    def __init__(self, config: EagleConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.qkv_bias:
            for name in ("q_proj", "k_proj", "v_proj"):
                without = getattr(self.self_attn, name)
                setattr(self.self_attn, name, nn.Linear(without.in_features, without.out_features, bias=True))
        if layer_idx == 0 and not config.layernorms:
            self.input_layernorm = nn.Identity()


class EagleDraftModel(DraftHead):
    """
    A draft head of EAGLE-1 (arXiv 2401.15077), EAGLE-2 (2406.16858) or HASS (2408.15766), loaded and saved like any
    transformers model.

    Row `t` of a forward pairs the target's last hidden state at position `t`, after its final norm, with the embedding
    of token `x_{t+1}`, and predicts `x_{t+2}`. What a head does not bring is the target's: see
    [`input_embeddings_for`] and [`output_embeddings_for`].

    ```python
    >>> head = EagleDraftModel.from_pretrained("yuhuili/EAGLE-LLaMA3-Instruct-8B", dtype=torch.bfloat16)
    >>> target.generate(**inputs, assistant_model=head)
    ```
    """

    config_class = EagleConfig
    _no_split_modules: ClassVar[list[str]] = ["EagleDecoderLayer"]
    if TYPE_CHECKING:  # transformers would take a string annotation of `config` for the class itself
        config: EagleConfig

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        sizes: Any = config  # the optional ones are filled in once a config exists
        hidden, norm = config.hidden_size, partial(LlamaRMSNorm, config.hidden_size, eps=config.rms_norm_eps)
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden) if config.own_embeddings else None
        self.embed_norm = norm() if config.layernorms else None
        self.fc = nn.Linear(2 * hidden, hidden, bias=config.fc_bias)
        self.layers = nn.ModuleList([EagleDecoderLayer(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = norm() if config.layernorms else None
        self.lm_head = nn.Linear(hidden, sizes.draft_vocab_size, bias=False) if config.own_lm_head else None
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.reduced = sizes.draft_vocab_size < config.vocab_size
        if self.reduced:
            self.register_buffer("d2t", torch.zeros(sizes.draft_vocab_size, dtype=torch.long))
            self.register_buffer("t2d", torch.arange(config.vocab_size) < sizes.draft_vocab_size)
        self.post_init()

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
        lm_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Eagle3Output:
        """
        Args:
            hidden_states (`[batch, seq, hidden]`):
                The target's last hidden states, after its final norm, or the fed-back `last_hidden_state`.
            input_ids (`[batch, seq]`, int64): TARGET ids of the tokens one position later. Needs own embeddings.
            inputs_embeds (`[batch, seq, hidden]`): Their embeddings instead, where the head has none of its own.
            position_ids (`[batch, seq]`): Position of the feature; counted on from the cache if not given.
            attention_mask: `None` (causal), `[batch, keys]` padding, or 4D additive, used as it is.
            past_key_values: The head's cache, extended in place.
            logits_to_keep (`int`): Score only the last so many rows; 0 for all.
            lm_head: Gives logits of states `[batch, kept, hidden]`; the head's own output embeddings if not given.

        Raises:
            ValueError: if neither ids with own embeddings nor `inputs_embeds` are given, or both are; or there is no
                `lm_head`.
        """
        score = self.lm_head if lm_head is None else lm_head
        if score is None:
            raise ValueError(
                "This head has no output embeddings of its own and got no `lm_head`; pass one made with "
                "`head.output_embeddings_for(target)`."
            )
        embeds = self.embedded(input_ids, inputs_embeds).to(hidden_states.dtype)
        if self.embed_norm is not None:
            embeds = self.embed_norm(embeds)
        # At every step, fed-back states too; EAGLE-3 does so with the target's states only.
        hidden_states = self.fc(torch.cat((embeds, hidden_states), dim=-1))
        around = self.surroundings(hidden_states, position_ids, attention_mask, past_key_values, use_cache)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **around)
        scored = hidden_states[:, -logits_to_keep:]
        return Eagle3Output(
            logits=score(scored if self.norm is None else self.norm(scored)),
            last_hidden_state=hidden_states,
            past_key_values=around["past_key_values"] if self.caches(use_cache) else None,
        )

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """The target's states as the head reads them, `[batch, seq, hidden]`: as they are."""
        return features

    def set_draft_vocabulary(self, target_ids: torch.Tensor) -> None:
        if not self.reduced:
            raise ValueError("This head proposes every token of its target; make it with a `draft_vocab_size`.")
        super().set_draft_vocabulary(target_ids)

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        return super().to_target_ids(draft_ids) if self.reduced else draft_ids

    def output_embeddings_for(self, target: PreTrainedModel) -> Any:
        """The output embeddings to draft with: the head's own if its checkpoint brought any, else the target's module.

        Raises:
            ValueError: if the target has none.
        """
        if self.lm_head is not None:
            return self.lm_head
        found: Any = target.get_output_embeddings()
        if found is None:
            raise ValueError(
                f"{type(target).__name__} does not name its output embeddings, which an EAGLE-1 head predicts with "
                "(`get_output_embeddings()` gives None); use a target that does, or a head of EAGLE-3."
            )
        return found

    def get_output_embeddings(self) -> Any:
        return self.lm_head


__all__ = ["EagleDecoderLayer", "EagleDraftModel"]
