"""Boundary `L`: what leaves the target's last layer, before its final norm, which transformers never returns."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import OracleHead, oracle
from helpers.targets import GOLDEN, VOCABULARY, prompt, tiny_target
from test_every_target import LAYERS as SHRUNKEN
from test_every_target import shrunken
from test_threads import in_two_threads
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_eagle3 import Eagle3CandidateGenerator, Eagle3Config, Eagle3DraftModel, TreeShape
from hf_eagle3.probe import check_target
from hf_eagle3.states import LAST_HIDDEN_STATE, capturing

LAYERS, NEW = 7, 24
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MORE = {"gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": None}, "gemma3_text": {}}
# Where the final norm is found, which is what this test has to know and the code has not.
NORMS = {"gpt_neox": "final_layer_norm"}


def target_of(family: str) -> PreTrainedModel:
    if family not in MORE:
        return tiny_target(family)
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **SIZES | MORE[family])
    return AutoModelForCausalLM.from_config(config).float().eval()


def final_norm(target: PreTrainedModel) -> nn.Module:
    return getattr(target.get_decoder(), NORMS.get(target.config.model_type, "norm"))


@torch.no_grad()
def states_at(target: PreTrainedModel, ids: torch.Tensor, boundaries: list[int]) -> list[torch.Tensor]:
    with capturing(target, boundaries) as capture:
        out = target(ids, **capture.asked)
    return capture.states(out.get("hidden_states"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "gemma3_text", "gpt_oss"])
@torch.no_grad()
def test_it_is_the_state_before_the_final_norm(family: str) -> None:
    target, ids = target_of(family), prompt()
    before, after = states_at(target, ids, [2, LAYERS, LAST_HIDDEN_STATE])[1:]
    plain = target(ids, output_hidden_states=True).hidden_states
    assert torch.equal(final_norm(target)(before), plain[LAYERS])
    assert torch.equal(after, plain[LAYERS])
    assert not torch.allclose(before, after)
    assert torch.equal(states_at(target, ids, [LAYERS])[0], before)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt_oss"])
def test_prefill_and_verification_hand_it_to_the_drafter(family: str) -> None:
    """What the drafter saw of every committed position, against one plain forward over the whole text."""
    target = target_of(family)
    head = oracle(target, boundaries=(3, LAYERS))
    pair = compare(target, head, {"max_new_tokens": NEW}, least=1.5, input_ids=prompt())
    text = pair.plain.sequences
    expected = states_at(target, text, [3, LAYERS])
    seen = head.records[-1].observed
    assert seen[0][0] == prompt().shape[1]
    assert len(seen) > 3
    for end, states in seen:
        for state, whole in zip(states, expected, strict=True):
            torch.testing.assert_close(state, whole[:, end - state.shape[1] : end], atol=1e-3, rtol=1e-3)


def test_a_head_that_reads_it_gives_the_targets_tokens(golden_target, golden_head) -> None:
    """A head trained on boundary 5 meets boundary 8 instead, and guesses worse; the tokens are the target's."""
    config = copy.deepcopy(golden_head.config)
    config.target_boundaries = [2, 4, 8]
    head = Eagle3DraftModel(config).eval()
    head.load_state_dict(golden_head.state_dict())
    assert head.config.boundaries_for(8) == [2, 4, 8]
    compare(golden_target, head, {"max_new_tokens": NEW, "eos_token_id": None}, input_ids=prompt(12, vocabulary=500))


def test_threads_keep_their_states_apart() -> None:
    target = tiny_target(max_position_embeddings=511)
    prompts = [prompt(5 + seed, seed=seed) for seed in range(8)]

    def last(ids: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            [state] = states_at(target, ids, [LAYERS])
        return state

    together = in_two_threads(last, prompts)
    for ids, state in zip(prompts, together, strict=True):
        assert torch.equal(state, states_at(target, ids, [LAYERS])[0])
    layer = target.get_decoder().layers[-1]
    ours = [hook for hook in layer._forward_hooks.values() if hook.__module__ == "hf_eagle3.states"]
    assert len(ours) == 1


def test_two_targets_in_one_call_keep_their_states_apart() -> None:
    """A forward of another hooked target inside a capture is not what is captured."""
    one, other, ids = tiny_target(), tiny_target(seed=9), prompt()
    [expected] = states_at(one, ids, [LAYERS])
    states_at(other, ids, [LAYERS])
    with torch.no_grad(), capturing(one, [LAYERS]) as capture:
        one(ids)
        other(ids)
    assert torch.equal(capture.states(None)[0], expected)
    copied = copy.deepcopy(one)
    assert torch.equal(states_at(copied, ids, [LAYERS])[0], expected)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_offloaded_targets(golden_target, tmp_path: Path, place: str) -> None:
    from accelerate import cpu_offload

    ids = prompt(12, vocabulary=500)
    where: dict[str, Any] = {f"model.layers.{number}": "disk" if number > 4 else "cpu" for number in range(8)}
    where |= dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    placed = {"device_map": where, "offload_folder": tmp_path} if place == "disk" else {}
    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32, **placed).eval()
    target = cpu_offload(target, execution_device=torch.device("cpu")) if place == "memory" else target
    assert torch.equal(states_at(target, ids, [8])[0], states_at(golden_target, ids, [8])[0])
    compare(target, oracle(target, boundaries=(8,)), {"max_new_tokens": 12, "eos_token_id": None}, input_ids=ids)


@pytest.mark.slow
@torch.no_grad()
def test_every_family_that_holds_a_tree_gives_it_or_is_refused() -> None:
    """Some norm of the target (all have gain 1 here) makes the last hidden state of it, or there is no final norm."""
    given, refused, ids = [], [], torch.tensor([[5, 17, 9, 40]])
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = shrunken(model_type)
        if model is None or getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0) != SHRUNKEN:
            continue
        try:
            check_target(model, [1, 2])
            before, after = states_at(model, ids, [SHRUNKEN, LAST_HIDDEN_STATE])
        except ValueError as error:
            refused.append(str(error))
            continue
        assert torch.equal(before, after) or _some_norm_gives(model, before, after), model_type
        given.append(model_type)
    print(f"{len(given)} give it, {len(refused)} are refused, for no tree or for no last layer")
    assert len(given) >= 85
    assert not [sentence for sentence in refused if "\n" in sentence]


def _some_norm_gives(model: PreTrainedModel, before: torch.Tensor, after: torch.Tensor) -> bool:
    for name, module in model.get_decoder().named_modules():
        if "norm" in name or "ln" in name:
            with contextlib.suppress(Exception):  # of another width, or not called with states alone
                if torch.allclose(module(before), after, atol=1e-5):
                    return True
    return False


# ---------------------------------------------------------------------- where it cannot be had


class Elsewhere(nn.Module):
    """A decoder whose only list of seven modules is not what runs."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.others = nn.ModuleList(nn.Linear(1, 1) for _ in range(count))


@pytest.mark.parametrize(("count", "why"), [(3, "holds no list of 7 layers"), (LAYERS, "is not what enters Linear")])
def test_a_target_whose_last_layer_is_not_found_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, why: str
) -> None:
    target = tiny_target(max_position_embeddings=500 + count)
    monkeypatch.setattr(target, "get_decoder", lambda: Elsewhere(count))
    config = Eagle3Config.from_target(target.config, target_boundaries=[2, 4, LAYERS])
    with pytest.raises(ValueError, match=why) as caught:
        target.generate(prompt(), max_new_tokens=4, assistant_model=Eagle3DraftModel(config))
    assert "\n" not in str(caught.value)


def test_the_stock_protocol_never_takes_the_normed_state_for_it() -> None:
    target = tiny_target()
    config = Eagle3Config.from_target(target.config, target_boundaries=[2, 4, LAYERS])
    drafter = Eagle3CandidateGenerator(Eagle3DraftModel(config).eval(), target, TreeShape(4, 2, 2))
    with torch.no_grad():
        out = target(prompt(), output_hidden_states=True)
    with pytest.raises(ValueError, match=r"hidden states at boundaries \[2, 4, 7\]"):
        drafter.get_candidates(prompt(), model_outputs=out)


def test_the_two_last_states_have_two_names(head: OracleHead, target: PreTrainedModel) -> None:
    normed = Eagle3Config.from_target(target.config, reads_last_hidden_state=True)
    streamed = Eagle3Config.from_target(target.config, target_boundaries=[LAYERS], num_target_boundaries=1)
    assert normed.boundaries_for(LAYERS) == [LAST_HIDDEN_STATE]
    assert streamed.boundaries_for(LAYERS) == [LAYERS]
    with pytest.raises(ValueError, match="whose boundaries are 0 to 6"):
        streamed.boundaries_for(LAYERS - 1)
