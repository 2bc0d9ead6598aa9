"""The traps of released heads, and where each is tested.

They are numbered as in the notes on checkpoint formats. `layouts` is `test_layouts.py`, whose cases are `variant` or
`variant-departure`; what no other test shows is tested here.

| trap | what goes wrong | tests |
|---|---|---|
| 1 | layer ids mean outputs or boundaries | test_traps.py::test_layer_ids, layouts:modelopt-hf_2026, layouts:eagle3_1-speculators |
| 2 | ids that engines read differently | test_traps.py::test_contested_ids_are_warned_of |
| 3 | ids are not sorted | layouts:modelopt-hf_2025-unsorted_ids |
| 4 | boundaries collapse on shallow targets | test_bad_input.py::test_released_head_and_shallow_target |
| 5 | `d2t` read as absolute ids | test_bad_input.py::test_draft_ids_written_as_absolute_ids |
| 6 | a reduced vocabulary without `d2t` | layouts:modelopt-megatron_deep-without_d2t |
| 7 | maps absent or zero where they mean nothing | layouts:eagle3_official-vicuna_13b-zero_maps |
| 8 | the default of `norm_before_residual` | test_traps.py::test_norm_before_residual_is_false_where_a_config_is_silent |
| 9 | `norm_before_fc` in either place, or told by its tensor | layouts:modelopt-gpt_oss_v3, layouts:speculators_eagle3-gpt_oss_20b, test_traps.py::test_a_norm_is_told_by_its_tensor |
| 11 | what `norm_output` feeds back | layouts:eagle3_1-speculators |
| 12 | no `rope_theta` is 10000, not the target's | layouts:eagle3_official-llama31_8b |
| 13 | trained with another base than the config's | test_traps.py::test_the_rotary_base_can_be_chosen |
| 14 | `rope_theta` moved and `rope_scaling` is never None | layouts:specforge-qwen3_8b-rope_parameters, layouts:specforge-qwen3_8b-mrope |
| 15 | the head's base differs from the target's | test_traps.py::test_head_and_target_rotate_each_by_its_own_base |
| 16 | halves or pairs | layouts:modelopt-maverick, layouts:modelopt-kimi_k2_mla |
| 17 | `num_hidden_layers` lies | layouts:eagle3_official-vicuna_13b |
| 18 | `tie_word_embeddings` lies | layouts:angelslim-qwen3_4b_tied |
| 21 | embeddings absent, needed, or a copy | layouts:eagle3_official-llama33_70b, layouts:speculators_eagle3-llama31_8b-without_embed_tokens |
| 22 | widths decide whether `fc` is applied | test_traps.py::test_fc_is_applied_though_nothing_changes_its_width |
| 23 | the state after the final norm, and no `fc` | layouts:modelopt-gpt_oss_last_state-with_unused_fc, test_behind_last_layer.py::test_the_two_last_states_have_two_names |
| 24 | three prefixes, and `hidden_norm` in deep layers | layouts:modelopt-megatron_deep, layouts:nemo_automodel-llama, layouts:modelopt-hf_2026 |
| 25 | fields left out, null ids, no `model_type` | layouts:speculators_eagle3-gpt_oss_20b-null_ids, test_layouts.py::test_saved_as_ours_it_is_the_same_head |
| 26 | `head_dim` null, or unrelated to the width | test_traps.py::test_head_dim_is_read_off_the_tensors, layouts:specforge-gpt_oss_120b |
| 27 | other than three boundaries | layouts:peagle-qwen3_8b, test_bad_input.py::test_more_boundaries_than_the_default_rule_knows |
| 28 | pickles and safetensors side by side | test_traps.py::test_safetensors_are_read_before_a_pickle |
| 29 | a padded vocabulary | test_traps.py::test_a_padded_vocabulary |
| 30 | `truncated_vocab_size` | test_traps.py::test_the_other_name_of_the_draft_vocabulary |
| 33 | windows and norms that no tensor shows | layouts:speculators_eagle3-trainer_2026 |

Of EAGLE-1 is trap 10. Traps 19 and 20 are of sampling and of trees (`test_distribution.py`, `test_draft_inputs.py`), 31
of trainers, and 32 of how well a head drafts, which no loader sees.
"""  # noqa: E501  # a table

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import Synthetic, synthesise, variant
from helpers.layout_verdicts import LENGTH, drafted
from helpers.reference_heads import random_inputs
from helpers.targets import tiny_target
from test_layouts import CASES
from transformers import LlamaConfig, LlamaForCausalLM

import hf_eagle3
from hf_eagle3 import Eagle3DraftModel
from hf_eagle3.layouts_eagle3 import MASK_TOKEN_FIELDS

TESTS = Path(__file__).resolve().parents[1]
OFFICIAL, MODELOPT, SPECULATORS = "eagle3_official-llama31_8b", "modelopt-hf_2026", "speculators_eagle3-converted"


def written(name: str, folder: Path, options: tuple[str, ...] = (), **fields: Any) -> Synthetic:
    """A catalogued checkpoint with some fields of its config changed; `...` takes one out."""
    made = synthesise(variant(name), folder, options=options)
    config = {**made.config, **fields}
    config = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def with_ids(ids: list[int]) -> dict[str, Any]:
    return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids}}


# ---------------------------------------------------------------------- the table above


def test_every_test_that_is_named_exists() -> None:
    table = [line for line in (__doc__ or "").splitlines() if re.match(r"\| \d+ ", line)]
    assert [int(line.split("|")[1]) for line in table] == [*range(1, 10), *range(11, 19), *range(21, 31), 33]
    cases = {case.id for case in CASES}
    for line in table:
        named = line.split("|")[3].split(",")
        assert named
        for each in (name.strip() for name in named):
            kind, _, name = each.partition(":")
            if kind == "layouts":
                assert name in cases, each
            else:
                [file] = TESTS.rglob(kind)
                assert f"def {name.strip(':')}(" in file.read_text(encoding="utf-8"), each


# ---------------------------------------------------------------------- layer ids (traps 1 and 2)


@pytest.mark.parametrize(
    ("ids", "layers", "boundaries"),
    [
        ([1, 4, 6], 10, [2, 5, 7]),  # ModelOpt and SpecForge write outputs
        ([6, 1, 4], 10, [2, 5, 7]),
        ([2, 5, 7], 10, [2, 5, 7]),  # and these cannot have been their default
        ([4, 7, 10], 10, [4, 7, 10]),  # layer 10 does not exist, the boundary behind the last layer does
        ([1, 5, 10], 10, [1, 5, 10]),  # which only the target tells
        ([1, 5, 10], 11, [2, 6, 11]),
    ],
)
def test_layer_ids(ids: list[int], layers: int, boundaries: list[int], tmp_path: Path) -> None:
    written(MODELOPT, tmp_path / "theirs", **with_ids(ids))
    head = hf_eagle3.load_head(tmp_path / "theirs")
    head.save_pretrained(tmp_path / "ours")
    for config in (head.config, hf_eagle3.load_head(tmp_path / "ours").config):
        assert config.boundaries_for(layers) == boundaries


def test_chosen_boundaries_are_taken_as_they_are(tmp_path: Path) -> None:
    written(MODELOPT, tmp_path, **with_ids([1, 4, 6]))
    config = hf_eagle3.load_head(tmp_path, target_boundaries=[1, 4, 9]).config
    assert config.boundaries_for(10) == [1, 4, 9]
    with pytest.raises(ValueError, match=r"boundaries \[1, 4, 9\] but the target has 8 layers"):
        config.boundaries_for(8)
    with pytest.raises(ValueError, match="3 different boundaries"):
        hf_eagle3.load_head(tmp_path, target_boundaries=[1, 4])


@pytest.mark.parametrize(
    ("ids", "given", "warned"), [([1, 17, 32], {}, True), ([1, 17, 33], {}, False), ([1, 17, 32], [1, 17, 32], False)]
)
def test_contested_ids_are_warned_of(
    ids: list[int], given: Any, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(MODELOPT, tmp_path, **with_ids(ids))
    with caplog.at_level(logging.WARNING, logger="hf_eagle3"):
        head = hf_eagle3.load_head(tmp_path, **({"target_boundaries": given} if given else {}))
    assert head.config.boundaries_for(36) == (given or [layer + 1 for layer in ids])
    assert ("`target_boundaries=[1, 17, 32]`" in caplog.text) is warned


# ---------------------------------------------------------------------- norms (traps 8 and 9)


@pytest.mark.parametrize("name", [OFFICIAL, MODELOPT, SPECULATORS, "peagle-specforge_qwen3_8b"])
def test_norm_before_residual_is_false_where_a_config_is_silent(name: str, tmp_path: Path) -> None:
    written(name, tmp_path, norm_before_residual=...)
    assert hf_eagle3.load_head(tmp_path).config.norm_before_residual is False


def test_a_norm_is_told_by_its_tensor(tmp_path: Path) -> None:
    """A flag that was dropped does no harm; a tensor that is missing does."""
    written("modelopt-gpt_oss_v3", tmp_path / "silent", **with_ids([7, 8, 10]))
    assert hf_eagle3.load_head(tmp_path / "silent").config.norm_before_fc
    written(MODELOPT, tmp_path / "flag", norm_before_fc=True)
    with pytest.raises(ValueError, match=r"lacks the tensors input_norm\.weight"):
        hf_eagle3.load_head(tmp_path / "flag")


# ---------------------------------------------------------------------- rotary embeddings (traps 13 and 15)


def test_the_rotary_base_can_be_chosen(tmp_path: Path) -> None:
    """AngelSlim trains with base 10000 and writes 1000000."""
    made = written("angelslim-qwen3_8b", tmp_path)
    as_written, chosen = (hf_eagle3.load_head(tmp_path, **base) for base in ({}, {"rope_theta": 10000.0}))
    frequencies = 10000.0 ** -(torch.arange(0, made.sizes.D, 2) / made.sizes.D)
    torch.testing.assert_close(chosen.rotary_emb.inv_freq, frequencies)
    assert as_written.config.rope_parameters["rope_theta"] == 1e6
    assert not torch.allclose(as_written.rotary_emb.inv_freq, frequencies)


def test_head_and_target_rotate_each_by_its_own_base(tmp_path: Path) -> None:
    made = written("specforge-qwen3_8b", tmp_path)
    sizes = {"hidden_size": made.sizes.Ht, "vocab_size": made.sizes.Vt, "head_dim": made.sizes.D}
    target = tiny_target(rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **sizes)
    head = hf_eagle3.load_head(tmp_path, dtype=torch.float32)
    before = head.rotary_emb.inv_freq.clone()
    target.generate(torch.arange(1, 9)[None], max_new_tokens=8, assistant_model=head)
    assert torch.equal(head.rotary_emb.inv_freq, before)
    assert not torch.allclose(head.rotary_emb.inv_freq, target.model.rotary_emb.inv_freq)


# ---------------------------------------------------------------------- widths (traps 22 and 26)


@torch.no_grad()
def test_fc_is_applied_though_nothing_changes_its_width(tmp_path: Path) -> None:
    """Three states of a third of the head's width: what a test of widths takes for a fed-back state."""
    config = hf_eagle3.Eagle3Config(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=4,
        target_hidden_size=8,
        target_boundaries=[1, 2, 3],
        own_embeddings=True,
    )
    torch.manual_seed(0)
    head = Eagle3DraftModel(config)
    head.save_pretrained(tmp_path)
    again = Eagle3DraftModel.from_pretrained(tmp_path)
    features = torch.randn(1, 5, 24)
    assert not torch.allclose(again.fuse(features), features)
    assert torch.equal(again.fuse(features), head.fuse(features))


@pytest.mark.parametrize("said", [None, 999, ...])
def test_head_dim_is_read_off_the_tensors(said: Any, tmp_path: Path) -> None:
    made = written("specforge-gpt_oss_120b", tmp_path, head_dim=said)
    assert made.sizes.A * made.sizes.D != made.sizes.H
    assert hf_eagle3.load_head(tmp_path).config.head_dim == made.sizes.D


# ---------------------------------------------------------------------- files (trap 28)


def test_safetensors_are_read_before_a_pickle(tmp_path: Path) -> None:
    made = written("specforge-llama31_8b", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"damaged")
    head = hf_eagle3.load_head(tmp_path)
    assert torch.equal(head.fc.weight, made.state_dict["fc.weight"])


# ---------------------------------------------------------------------- vocabularies (traps 29 and 30)


def test_a_padded_vocabulary(tmp_path: Path) -> None:
    """The config counts padding rows that the target's output does not have; mask and embeddings tell."""
    written(OFFICIAL, tmp_path / "mask", vocab_size=72)
    assert hf_eagle3.load_head(tmp_path / "mask").config.vocab_size == 64
    written("eagle3_official-llama33_70b", tmp_path / "embeddings", vocab_size=72)
    assert hf_eagle3.load_head(tmp_path / "embeddings").config.vocab_size == 64
    made = written(MODELOPT, tmp_path / "neither", vocab_size=72)
    padded = hf_eagle3.load_head(tmp_path / "neither", dtype=torch.float32)
    target = tiny_target(hidden_size=made.sizes.Ht, vocab_size=64, num_hidden_layers=10)
    ids = torch.arange(1, 9)[None]
    with pytest.raises(ValueError, match="made for a target of 72 tokens but the target has 64"):
        target.generate(ids, max_new_tokens=4, assistant_model=padded)
    fitting = hf_eagle3.load_head(tmp_path / "neither", dtype=torch.float32, vocab_size=64)
    drafted_text = target.generate(ids, max_new_tokens=8, assistant_model=fitting)
    assert torch.equal(drafted_text, target.generate(ids, max_new_tokens=8))


def test_the_other_name_of_the_draft_vocabulary(tmp_path: Path) -> None:
    """With it alone a config that calls itself a Llama is that of a head."""
    made = written("specforge-gpt_oss_20b_nebius", tmp_path, draft_vocab_size=...)
    assert made.config["architectures"] == ["LlamaForCausalLM"]
    assert hf_eagle3.load_head(tmp_path).config.draft_vocab_size == made.sizes.Vd


# ---------------------------------------------------------------------- masked slots


@pytest.mark.parametrize("field", MASK_TOKEN_FIELDS)
def test_every_name_of_the_mask_token(field: str, tmp_path: Path) -> None:
    written("peagle-specforge_qwen3_8b", tmp_path, **{field: 7})
    assert hf_eagle3.load_head(tmp_path).config.mask_token_id == 7
    assert hf_eagle3.load_head(tmp_path, mask_token_id=9).config.mask_token_id == 9


@torch.no_grad()
def test_masked_states_of_two_dimensions(tmp_path: Path) -> None:
    """NeMo writes `[1, N * Ht]` where others write `[1, 1, N * Ht]`."""
    from safetensors.torch import load_file, save_file

    made = written("peagle-qwen3_8b", tmp_path)
    three = hf_eagle3.load_head(tmp_path, dtype=torch.float64)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"mask_hidden": tensors["mask_hidden"][0]}, tmp_path / "model.safetensors")
    two = hf_eagle3.load_head(tmp_path, dtype=torch.float64)
    inputs = random_inputs(made, LENGTH, 4)
    for one, other in zip(drafted(three, made, *inputs), drafted(two, made, *inputs), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------- latent attention


@pytest.mark.parametrize("name", ["kv_b_proj", "kv_a_layernorm", "q_b_proj"])
def test_a_latent_head_without_a_piece(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written("modelopt-kimi_k2_mla", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"layers.0.self_attn.{name}.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=name) as caught:
        hf_eagle3.load_head(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_latent_head_drafts(tmp_path: Path) -> None:
    """In generate, on a target of its widths: its cache holds latents, is cropped, and its trees are masked."""
    made = written("modelopt-kimi_k2_mla", tmp_path, ("deepseek_yarn",))
    config = LlamaConfig(
        vocab_size=made.sizes.Vt,
        hidden_size=made.sizes.Ht,
        intermediate_size=32,
        num_hidden_layers=10,
        num_attention_heads=4,
        initializer_range=0.6,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    target = LlamaForCausalLM(config).eval()
    head = hf_eagle3.load_head(tmp_path, dtype=torch.float32)
    ids = torch.arange(1, 9)[None]
    out = target.generate(ids, max_new_tokens=24, assistant_model=head, return_dict_in_generate=True, tree_depth=4)
    assert torch.equal(out.sequences, target.generate(ids, max_new_tokens=24))
