"""What every draft head is: a transformers model that borrows a target's embeddings, keeps the tree it likes best, and
loads from any layout that is known here.

Knows nothing of layers; files are `checkpoint.py`'s.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from . import checkpoint
from .adapted import Adapter, read_adapted
from .publishing import Published

logger = logging.getLogger(__name__)

# The draft tree, on `head.generation_config`; None leaves its size to the device (see `default_trees`).
TREE_KNOBS = ("num_assistant_tokens", "tree_depth", "tree_top_k", "assistant_confidence_threshold", "draft_tree")


class DraftHead(Published, PreTrainedModel):
    """
    Base class of draft heads.

    A subclass makes `embed_tokens` (or None), `rotary_emb`, and `d2t` and `t2d` if it has a draft vocabulary.
    """

    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    if TYPE_CHECKING:  # transformers would take an annotation of `config` for the class itself
        config: Any
        embed_tokens: Any
        rotary_emb: Any
        d2t: Any
        t2d: Any

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        # A model without GenerationMixin gets none from transformers, and with it custom fields are lost on reload.
        self.generation_config = GenerationConfig(**dict.fromkeys(TREE_KNOBS))
        self.gradient_checkpointing = False

    # ------------------------------------------------------------------ parts of a forward

    def embedded(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """The embeddings of a forward, `[batch, seq, hidden]`, from either of its two arguments.

        Raises:
            ValueError: if neither ids with own embeddings nor embeddings are given, or both are.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Got both or neither of `input_ids` and `inputs_embeds`; a head needs exactly one.")
        if inputs_embeds is not None:
            return inputs_embeds
        if self.embed_tokens is None:
            raise ValueError(
                "Got `input_ids`, but this head has no embeddings of its own; pass `inputs_embeds` made with "
                "`head.input_embeddings_for(target)`."
            )
        return self.embed_tokens(input_ids)

    def caches(self, use_cache: bool | None) -> bool:
        """Whether a forward returns its cache."""
        return self.config.use_cache and not self.training if use_cache is None else use_cache

    def surroundings(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
    ) -> dict[str, Any]:
        """What each decoder layer gets beside the states `[batch, seq, hidden]`: rotary embeddings, mask, cache."""
        if self.caches(use_cache) and past_key_values is None:
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
        return {
            "position_embeddings": self.rotary_emb(hidden_states, position_ids=position_ids),
            "attention_mask": mask,
            "past_key_values": past_key_values,
        }

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
        self.embed_tokens = value

    # ------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any) -> Any:
        """Load a head of this class, saved by us or released in another layout, from a folder or the Hub; no
        conversion needed.

        Takes what `PreTrainedModel.from_pretrained` takes, and any field of the head's config, which then wins
        (`target_boundaries=[...]` where a released EAGLE-3 config leaves them open). The structure is read from the
        tensors first, the config second; every tensor is checked. An adapter (LoRA) is put on the head that it names.

        Raises:
            ImportError: if it is an adapter and peft is not installed.
            OSError: if there is no such repository or file, or a file cannot be read.
            ValueError: if a tensor is missing, unexpected, misshapen or not finite, or the layout is not known, or is
                that of another kind of head.
        """
        found, adapter = read_adapted(pretrained_model_name_or_path, kwargs)
        if not isinstance(found.config, cls.config_class):
            raise ValueError(
                f"{found.source} holds a head of layout {found.layout}, which is no {cls.__name__}; load it with "
                "`hf_eagle3.load_head`, which knows each head's class."
            )
        return cls.from_checkpoint(found, adapter, *model_args, **kwargs)

    @classmethod
    def from_checkpoint(
        cls, found: checkpoint.Checkpoint, adapter: Adapter | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """The head that a checkpoint of this class's config holds, with an adapter on it if there is one; `kwargs` as
        `from_pretrained` takes them."""
        logger.info(found.described())
        tensors = dict(found.tensors)
        checkpoint.check_tensors(tensors, cls._expected_shapes(found.config), source=found.source)
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
        if adapter is not None:
            adapter.put_on(head)
        return head if info is None else (head, info)

    @classmethod
    def _expected_shapes(cls, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names of a head of this config, with their shapes."""
        with torch.device("meta"):
            head = cls(config)
        return {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}


__all__ = ["TREE_KNOBS", "DraftHead"]
