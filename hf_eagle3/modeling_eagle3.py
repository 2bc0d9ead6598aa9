"""The EAGLE-3 draft head: fuse captured target states, run a decoder layer over [embedding ; feature], predict.

Knows nothing of trees, verification or `generate`; files are `checkpoint.py`'s.
"""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
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

from . import checkpoint
from .configuration_eagle3 import Eagle3Config

logger = logging.getLogger(__name__)

# The size of a draft tree, on `head.generation_config`; None leaves it to the device (see `pairing.DEFAULT_TREES`).
TREE_KNOBS = ("num_assistant_tokens", "tree_depth", "tree_top_k")


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
        self.self_attn = Eagle3Attention(config, layer_idx)
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


class Eagle3PreTrainedModel(PreTrainedModel):
    """What transformers must know of a head: its config, what cannot be split, which attentions it can run."""

    config_class = Eagle3Config
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Eagle3DecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True


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
        self.fc = None if config.reads_last_hidden_state else nn.Linear(boundaries * width, config.hidden_size, False)
        self.layers = nn.ModuleList([Eagle3DecoderLayer(config, idx) for idx in range(config.num_hidden_layers)])
        self.norm = norm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, sizes.draft_vocab_size, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.register_buffer("d2t", torch.zeros(sizes.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(config.vocab_size) < sizes.draft_vocab_size)
        # A model without GenerationMixin gets none from transformers, and with it custom fields are lost on reload.
        self.generation_config = GenerationConfig(**dict.fromkeys(TREE_KNOBS))
        self.gradient_checkpointing = False
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
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both or neither of `input_ids` and `inputs_embeds`; a head needs exactly one.")
        embeds = self._embed(input_ids) if inputs_embeds is None else inputs_embeds
        embeds = embeds.to(hidden_states.dtype)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + hidden_states.shape[1], device=hidden_states.device)[None]
        masked = create_causal_mask if self.config.sliding_window is None else create_sliding_window_causal_mask
        mask = masked(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                inputs_embeds=embeds,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
            )
        fed_back = self.fed_back(hidden_states)
        scored = fed_back[:, -logits_to_keep:]
        return Eagle3Output(
            logits=self.lm_head(scored if self.config.norm_output else self.norm(scored)),
            last_hidden_state=fed_back,
            past_key_values=past_key_values if use_cache else None,
        )

    # ------------------------------------------------------------------ vocabularies and embeddings

    def set_draft_vocabulary(self, target_ids: torch.Tensor) -> None:
        """Let draft id `i` mean target id `target_ids[i]` (int64 `[draft_vocab]`, strictly ascending).

        Raises:
            ValueError: if the ids are not `draft_vocab_size` ascending ids of the target's vocabulary.
        """
        ids = target_ids.to(device=self.d2t.device, dtype=torch.long)
        checkpoint.check_draft_vocabulary(ids, self.config)
        self.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))
        self.t2d.zero_()
        self.t2d[ids] = True

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Target ids of draft ids, any shape, int64: `d2t` holds the OFFSET between the two (official `cnets.py`)."""
        return draft_ids + self.d2t[draft_ids]

    def input_embeddings_for(self, target: PreTrainedModel) -> Any:
        """The embeddings to draft with: the head's own if its checkpoint brought any, else the target's module.

        Raises:
            ValueError: if the target's embeddings do not have the head's width.
        """
        if self.embed_tokens is not None:
            return self.embed_tokens
        embeddings: Any = target.get_input_embeddings()
        width = embeddings.weight.shape[-1]
        if width != self.config.hidden_size:
            raise ValueError(
                f"The head is {self.config.hidden_size} wide and brings no embeddings, but the target's are {width} "
                "wide; use the target this head was trained for."
            )
        return embeddings

    def get_input_embeddings(self) -> Any:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module | None) -> None:
        self.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def _embed(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        if self.embed_tokens is None:
            raise ValueError(
                "Got `input_ids`, but this head has no embeddings of its own; pass `inputs_embeds` made with "
                "`head.input_embeddings_for(target)`."
            )
        return self.embed_tokens(input_ids)

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any
    ) -> Eagle3DraftModel:
        """Load a head saved by us or released in the EAGLE-3 layout, from a folder or the Hub; no conversion needed.

        Takes what `PreTrainedModel.from_pretrained` takes, and any field of [`Eagle3Config`], which then wins
        (`target_boundaries=[...]` where a released config leaves them open). The structure is read from the tensors
        first, the config second; every tensor is checked.

        Raises:
            OSError: if there is no such repository or file, or a file cannot be read.
            ValueError: if a tensor is missing, unexpected, misshapen or not finite, or the layout is not known.
        """
        found = checkpoint.read_checkpoint(pretrained_model_name_or_path, kwargs)
        logger.info(found.described())
        return cls._from_checkpoint(found, *model_args, **kwargs)

    @classmethod
    def _from_checkpoint(cls, found: checkpoint.Checkpoint, *model_args: Any, **kwargs: Any) -> Any:
        tensors = dict(found.tensors)
        checkpoint.check_tensors(tensors, _expected_shapes(found.config), source=found.source)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", found.dtype)
        loaded = super().from_pretrained(None, *model_args, config=found.config, state_dict=tensors, **kwargs)
        head, info = loaded if isinstance(loaded, tuple) else (loaded, None)
        if found.generation_config is not None:
            head.generation_config = found.generation_config
            for name in TREE_KNOBS:
                if not hasattr(head.generation_config, name):
                    setattr(head.generation_config, name, None)
        head.config.name_or_path = head.name_or_path = found.source
        return head if info is None else (head, info)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        layout: str | None = None,
        target: PreTrainedModel | str | os.PathLike | None = None,
        engine_version: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save config, generation config and safetensors. Embeddings borrowed from a target are never among them.

        Args:
            layout: "sglang", "vllm", "speculators" or "eagle" writes the files that those programs load instead.
            target, engine_version: for a `layout`, as [`hf_eagle3.hub.export.export_head`] takes them.

        Raises:
            ValueError: if the layout cannot say how this head computes.
        """
        if layout is not None:
            _refuse_with_layout(args, kwargs)
            export = importlib.import_module("hf_eagle3.hub.export")
            export.export_head(self, save_directory, layout, target=target, engine_version=engine_version)
            return
        super().save_pretrained(save_directory, *args, **kwargs)
        self.generation_config.save_pretrained(save_directory)


def _refuse_with_layout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args or kwargs:
        given = ", ".join([*map(repr, args), *kwargs])
        raise ValueError(f"`save_pretrained` was given {given} beside `layout`, which takes none of it; leave it out.")


def _expected_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Canonical tensor names of a head of this config, with their shapes."""
    with torch.device("meta"):
        head = Eagle3DraftModel(config)
    return {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}


def load_head(id_or_path: str | os.PathLike, **kwargs: Any) -> Eagle3DraftModel:
    """Load a draft head of any layout that is known here, in evaluation mode, from a folder or the Hub.

    Which layout and conventions were taken is logged by the logger "hf_eagle3" at level INFO.

    Args:
        kwargs: what [`Eagle3DraftModel.from_pretrained`] takes; the checkpoint's own dtype if none is given.

    Raises:
        OSError, ValueError: as [`Eagle3DraftModel.from_pretrained`] does; heads of other kinds are refused by name.
    """
    return Eagle3DraftModel.from_pretrained(id_or_path, **kwargs).eval()


__all__ = ["TREE_KNOBS", "Eagle3DraftModel", "Eagle3Output", "Eagle3PreTrainedModel", "load_head"]
