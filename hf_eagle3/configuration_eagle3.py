"""Configuration of an EAGLE-3 draft head: its geometry, the target's states it reads, and both vocabularies.

Knows nothing of tensors, files or targets in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

# Among boundaries: the state after the target's final norm, which its output matrix reads. It is transformers' own
# index; boundary `L`, of a target of `L` layers, is the state BEFORE that norm.
LAST_HIDDEN_STATE = -1
# Rotary embeddings by their type, and the parameters without which their frequencies cannot be computed.
_ROPE_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def check_rope(rope: Mapping[str, Any], source: str) -> None:
    """Refuse rotary embeddings that no head can compute; `source` begins the sentence that says so.

    Raises:
        ValueError: if their type is not known, or lacks a parameter.
    """
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_NEEDS:
        raise ValueError(f"{source} asks for rotary embeddings of type {kind!r}; known are {', '.join(_ROPE_NEEDS)}.")
    missing = [name for name in _ROPE_NEEDS[kind] if rope.get(name) is None]
    if missing:
        raise ValueError(
            f"{source} asks for rotary embeddings of type {kind!r} without {', '.join(missing)}; add to its config "
            "what the head was trained with."
        )


def default_boundaries(num_target_layers: int) -> list[int]:
    """The boundaries of the official code, `[2, L // 2, L - 3]` for a target of `L` layers (EAGLE-3, section 3.1).

    Raises:
        ValueError: if the three do not differ, which happens for `L < 7`.
    """
    boundaries = [2, num_target_layers // 2, num_target_layers - 3]
    if num_target_layers < 7:
        raise ValueError(
            f"A target of {num_target_layers} layers is too shallow for the default boundaries [2, L // 2, L - 3], "
            "which need at least 7 layers to differ; pass `target_boundaries=[...]` to choose others."
        )
    return boundaries


@strict
class Eagle3Config(PreTrainedConfig):
    r"""
    Configuration of an [`Eagle3DraftModel`].

    Args:
        vocab_size (`int`): Vocabulary of the TARGET. The head's own is `draft_vocab_size`.
        draft_vocab_size (`int`, *optional*): Tokens the head can propose; defaults to `vocab_size`.
        hidden_size (`int`): Width of the head.
        num_hidden_layers (`int`): Decoder layers of the head. The first reads `[embedding ; hidden]`, the rest hidden.
        target_hidden_size (`int`, *optional*): Width of the target's residual stream; defaults to `hidden_size`.
        target_boundaries (`list[int]`, *optional*):
            The captured boundaries, ascending: `b` is the residual stream that enters target layer `b`, that is
            `hidden_states[b]`; `L`, the number of layers, is what leaves the last one, before the final norm. `None`
            means the official default `[2, L // 2, L - 3]` of the target it meets.
        boundaries_from_outputs (`bool`):
            Whether `target_boundaries` were written as ids of layers whose OUTPUTS are read, each one less. Where the
            target shows that they cannot have been, they are taken as written.
        num_target_boundaries (`int`): How many boundaries the fusion layer takes.
        reads_last_hidden_state (`bool`):
            Whether the head reads the target's last hidden state, after its final norm, as it is: no boundaries and no
            fusion layer (`use_aux_hidden_state: false` of ModelOpt's heads).
        parallel_drafting (`bool`):
            Whether the head was trained to draft all levels in one forward (P-EAGLE, arXiv:2602.01469): it brings
            `mask_hidden`, which stands for the target's states where there are none yet.
        mask_token_id (`int`, *optional*): The target's token whose embedding stands for a token not drafted yet.
        norm_before_fc (`bool`): RMSNorm over the concatenated boundaries, before the fusion layer.
        fc_norm (`bool`): RMSNorm of each boundary by itself, before they are concatenated (EAGLE-3.1).
        norm_before_residual (`bool`): Whether the first layer's residual is the normed hidden state.
        norm_output (`bool`): Whether the state after the final norm is what is fed back.
        qkv_bias (`bool`): Biases of queries, keys and values; `attention_bias` adds the output's.
        qk_norm (`bool`): RMSNorm over each head of queries and keys, before they are rotated (Qwen3's layer).
        kv_lora_rank (`int`, *optional*):
            Width of the latent of keys and values; with it attention is latent (MLA, see `latent_attention.py`), and
            `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim` and, if queries have a latent too, `q_lora_rank`
            mean what they mean in a DeepSeek config; `head_dim` is then the rotated part.
        rope_interleave (`bool`): Of latent attention: the two of a rotated pair are neighbours, not half a head apart.
        sliding_window (`int`, *optional*): Positions that the head sees back, its own included; all if not given.
        own_embeddings (`bool`): Whether the checkpoint brings token embeddings; else the target's are used.
        rope_parameters (`dict`, *optional*): RoPE of the head; base 10000 if absent, whatever the target's is.

    ```python
    >>> from hf_eagle3 import Eagle3Config, Eagle3DraftModel
    >>> config = Eagle3Config.from_target(target.config, draft_vocab_size=16384)
    >>> head = Eagle3DraftModel(config)
    ```
    """

    model_type = "eagle3"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    default_theta = 10000.0

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
    target_hidden_size: int | None = None
    target_boundaries: list[int] | None = None
    num_target_boundaries: int | None = None
    boundaries_from_outputs: bool = False
    reads_last_hidden_state: bool = False
    parallel_drafting: bool = False
    mask_token_id: int | None = None
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    rope_interleave: bool = True
    sliding_window: int | None = None
    own_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.kv_lora_rank is not None:
            # What the rotary embedding is made for; every head has keys of its own once the latent is expanded.
            self.head_dim, self.num_key_value_heads = self.qk_rope_head_dim, self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.draft_vocab_size = self.draft_vocab_size or self.vocab_size
        self.target_hidden_size = self.target_hidden_size or self.hidden_size
        if self.target_boundaries is not None:
            # Every engine concatenates in layer order, whatever order a config was written in.
            self.target_boundaries = sorted(self.target_boundaries)
        if self.reads_last_hidden_state:
            self.num_target_boundaries = 1
        if self.num_target_boundaries is None:
            self.num_target_boundaries = 3 if self.target_boundaries is None else len(self.target_boundaries)
        self._check_sizes()
        self._check_inputs()
        super().__post_init__(**kwargs)
        check_rope(self.rope_parameters or {}, "The head's config")

    def _check_sizes(self) -> None:
        """Refuse sizes that cannot make a head; before the `@strict` validation, whose errors are no sentences."""
        sizes: Any = self  # the optional ones are filled in by now
        if sizes.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` is {self.draft_vocab_size} but the target's `vocab_size` is {self.vocab_size}; "
                "a head can only propose the target's tokens, so choose `draft_vocab_size <= vocab_size`."
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
        latent = {"qk_nope_head_dim": self.qk_nope_head_dim, "qk_rope_head_dim": self.qk_rope_head_dim}
        latent |= {"v_head_dim": self.v_head_dim}
        if self.kv_lora_rank is not None and not all(size is not None and size > 0 for size in latent.values()):
            raise ValueError(
                f"`kv_lora_rank` is {self.kv_lora_rank} with {latent}: latent attention needs a size of at least 1 "
                "for each of them."
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"`sliding_window` is {self.sliding_window}: give at least 1, or None for all positions.")
        if self.tie_word_embeddings:
            raise ValueError(
                "`tie_word_embeddings=True` was given, but a head's output rows are draft tokens and its embeddings "
                "the target's; set it to False."
            )

    def _check_inputs(self) -> None:
        """Refuse what a head cannot read; as `_check_sizes`."""
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("`norm_before_fc` and `fc_norm` were both given: a head has one of them; choose.")
        if self.reads_last_hidden_state and (
            self.target_boundaries is not None or self.target_hidden_size != self.hidden_size
        ):
            raise ValueError(
                f"`reads_last_hidden_state` was given for a head of width {self.hidden_size} with target_boundaries "
                f"{self.target_boundaries} on a target of width {self.target_hidden_size}: such a head reads no "
                "boundaries, and is as wide as the target."
            )
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"`mask_token_id` is {self.mask_token_id} but the target's `vocab_size` is {self.vocab_size}; give "
                "the id that the head was trained with."
            )
        boundaries = self.target_boundaries
        different = None if boundaries is None else {boundary for boundary in boundaries if boundary >= 0}
        if different is not None and len(different) != self.num_target_boundaries:
            raise ValueError(
                f"`target_boundaries` is {boundaries}, but {self.num_target_boundaries} different boundaries >= 0 are "
                "needed (`num_target_boundaries`)."
            )

    def boundaries_for(self, num_target_layers: int) -> list[int]:
        """The boundaries to capture from a target of `num_target_layers` layers `L`, ascending and at most `L`; or
        `[LAST_HIDDEN_STATE]` where the head reads that state.

        Raises:
            ValueError: if the target has too few layers for them.
        """
        if self.reads_last_hidden_state:
            return [LAST_HIDDEN_STATE]
        if self.target_boundaries is None and self.num_target_boundaries != 3:
            raise ValueError(
                f"The head reads {self.num_target_boundaries} boundaries and its config does not say which; load it "
                "with `target_boundaries=[...]`."
            )
        if self.target_boundaries is None:
            return default_boundaries(num_target_layers)
        boundaries = self.target_boundaries
        if self.boundaries_from_outputs and boundaries[-1] == num_target_layers + 1:
            # There is no layer `L` whose output could be meant, so the ids named boundaries all along (trap 1).
            boundaries = [boundary - 1 for boundary in boundaries]
        if boundaries[-1] > num_target_layers:
            raise ValueError(
                f"The head reads boundaries {boundaries} but the target has {num_target_layers} layers, whose "
                f"boundaries are 0 to {num_target_layers}; use the target this head was trained for."
            )
        return boundaries

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: `trust_remote_code` asks for it, and saved heads would then carry copies of this file."""

    @classmethod
    def from_target(
        cls, target_config: PreTrainedConfig, draft_vocab_size: int | None = None, **overrides: Any
    ) -> Eagle3Config:
        """The configuration of a fresh head for any decoder-only target: one decoder layer of the target's geometry.

        Args:
            target_config: the target's `config`; of a composite model, its text decoder's is read.
            draft_vocab_size: tokens the head can propose; the whole vocabulary if not given.
            overrides: any field of this class, which then wins.

        Raises:
            ValueError: if the target is too shallow for the default boundaries, or fields do not fit together.
        """
        text = target_config.get_text_config(decoder=True)
        fields = geometry_of(text)
        fields |= {"draft_vocab_size": draft_vocab_size, "target_hidden_size": text.hidden_size}
        if overrides.get("target_boundaries") is None and not overrides.get("reads_last_hidden_state"):
            fields["target_boundaries"] = default_boundaries(text.num_hidden_layers)
        fields.update(overrides)
        config = cls(**fields)
        config.boundaries_for(text.num_hidden_layers)
        return config


def geometry_of(text: PreTrainedConfig) -> dict[str, Any]:
    """Fields of a fresh head's config, whose layers are as large as those of the target's decoder `text`."""
    heads = text.num_attention_heads
    fields: dict[str, Any] = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "rope_parameters": _plain_rope(getattr(text, "rope_parameters", None)),
    }
    for name in ("max_position_embeddings", "rms_norm_eps"):
        if getattr(text, name, None):
            fields[name] = getattr(text, name)
    # Pipelines compare the special ids of model and assistant.
    return fields | {name: getattr(text, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _plain_rope(rope: dict[str, Any] | None) -> dict[str, Any] | None:
    """RoPE of a fresh head: the target's base and scaling, over the whole head dimension, one kind for all layers."""
    if not rope:
        return None
    nested = [entry for entry in rope.values() if isinstance(entry, dict)]
    plain = dict(rope.get("full_attention") or nested[0]) if nested else dict(rope)
    plain.pop("partial_rotary_factor", None)
    if plain.get("rope_type", "default") not in ("default", "linear", "dynamic", "yarn", "llama3"):
        return {"rope_type": "default", "rope_theta": plain.get("rope_theta", Eagle3Config.default_theta)}
    return plain


__all__ = ["LAST_HIDDEN_STATE", "Eagle3Config", "check_rope", "default_boundaries", "geometry_of"]
