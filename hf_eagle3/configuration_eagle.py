"""Configuration of an EAGLE-1/2 or HASS draft head: its geometry, and which of its pieces are its own.

Knows nothing of tensors, files or targets in memory.
"""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

from .configuration_eagle3 import LAST_HIDDEN_STATE, geometry_of


@strict
class EagleConfig(PreTrainedConfig):
    r"""
    Configuration of an [`EagleDraftModel`]: heads of EAGLE-1, of EAGLE-2, which differs in its tree only, and of HASS,
    which differs in its training only.

    Args:
        vocab_size (`int`): Vocabulary of the TARGET.
        draft_vocab_size (`int`, *optional*):
            Tokens the head can propose; defaults to `vocab_size`. Fewer need an `own_lm_head`.
        hidden_size (`int`): Width of the head, and of the target's last hidden state.
        num_hidden_layers (`int`): Decoder layers. The first has no norm before its attention.
        fc_bias (`bool`): Bias of the layer that joins embedding and hidden state.
        qkv_bias (`bool`): Biases of queries, keys and values (Qwen2's layer); `attention_bias` adds the output's.
        layernorms (`bool`):
            RMSNorms of the embedding, before the first layer's attention, and before the output embeddings, which the
            official heads have none of (the `layernorms` of the speculators library). What is fed back is un-normed.
        own_embeddings (`bool`): Whether the checkpoint brings token embeddings; else the target's are used.
        own_lm_head (`bool`): Whether it brings output embeddings; else the target's are used, as official heads do.
        rope_parameters (`dict`, *optional*): RoPE of the head; base 10000 if absent, whatever the target's is.

    ```python
    >>> from hf_eagle3 import EagleConfig, EagleDraftModel
    >>> head = EagleDraftModel(EagleConfig.from_target(target.config))
    ```
    """

    # vLLM's wrapper of such heads is called "eagle"; it nests the draft's config and is another format.
    model_type = "eagle1"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    default_theta = 10000.0
    # What code for heads of any kind asks of a config, and is one and the same for all of these.
    reads_last_hidden_state = True
    sliding_window = None

    vocab_size: int = 32000
    draft_vocab_size: int | None = None
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 1
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    fc_bias: bool = True
    qkv_bias: bool = False
    layernorms: bool = False
    own_embeddings: bool = False
    own_lm_head: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.draft_vocab_size = self.draft_vocab_size or self.vocab_size
        self._check_sizes()
        super().__post_init__(**kwargs)

    def _check_sizes(self) -> None:
        """Refuse sizes that cannot make a head; before the `@strict` validation, whose errors are no sentences."""
        sizes: Any = self  # the optional ones are filled in by now
        if sizes.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` is {self.draft_vocab_size} but the target's `vocab_size` is {self.vocab_size}; "
                "a head can only propose the target's tokens, so choose `draft_vocab_size <= vocab_size`."
            )
        if sizes.draft_vocab_size < self.vocab_size and not self.own_lm_head:
            raise ValueError(
                f"`draft_vocab_size` is {self.draft_vocab_size} of the target's {self.vocab_size} tokens, which the "
                "target's output embeddings do not fit; give the head its own (`own_lm_head=True`)."
            )
        if not isinstance(self.rms_norm_eps, (int, float)):
            raise ValueError(f"`rms_norm_eps` is {self.rms_norm_eps!r}, but a number is needed; 1e-6 is usual.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"`hidden_act` is {self.hidden_act!r}, which transformers does not know; it knows `silu`."
            )
        if self.num_attention_heads % sizes.num_key_value_heads != 0:
            raise ValueError(
                f"`num_attention_heads` is {self.num_attention_heads}, which `num_key_value_heads`="
                f"{self.num_key_value_heads} does not divide; choose a divisor."
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "`tie_word_embeddings=True` was given, but a head's embeddings and output embeddings are the target's "
                "or their own each; set it to False."
            )

    @property
    def target_hidden_size(self) -> int:
        """Width of the target's last hidden state, which the head shares."""
        return self.hidden_size

    def boundaries_for(self, num_target_layers: int) -> list[int]:
        """What to capture from a target, however many layers it has: its last hidden state, after the final norm."""
        return [LAST_HIDDEN_STATE]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: `trust_remote_code` asks for it, and saved heads would then carry copies of this file."""

    @classmethod
    def from_target(cls, target_config: PreTrainedConfig, **overrides: Any) -> EagleConfig:
        """The configuration of a fresh head for any decoder-only target: one decoder layer of the target's geometry.

        Args:
            target_config: the target's `config`; of a composite model, its text decoder's is read.
            overrides: any field of this class, which then wins.

        Raises:
            ValueError: if fields do not fit together.
        """
        return cls(**(geometry_of(target_config.get_text_config(decoder=True)) | overrides))


__all__ = ["EagleConfig"]
