"""The two doors, what may stand before them (peft), and that they open and close without a trace."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers.agreement import compare, learn_text, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import GOLDEN, prompt, tiny_target
from transformers import AutoModel, GenerationMixin

import hf_eagle3


@pytest.fixture
def installed():
    """Leaves the package installed, whatever a test does."""
    yield
    hf_eagle3.install()


# ---------------------------------------------------------------------- custom_generate


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4, "output_scores": True},
        {"eos_token_id": 12},
        {"num_assistant_tokens": 4, "tree_depth": 2, "tree_top_k": 2},
    ],
    ids=["bare", "scores", "stop", "knobs"],
)
def test_both_doors_lead_to_one_loop(golden_target, golden_head, options: dict[str, Any]) -> None:
    knobs = {name: value for name, value in options.items() if name.startswith(("num_", "tree_"))}
    rest = {name: value for name, value in options.items() if name not in knobs}
    call = {"max_new_tokens": 24, "eos_token_id": None, "return_dict_in_generate": True} | rest
    ids = prompt(12, vocabulary=500)
    one = golden_target.generate(ids, **call, **knobs, assistant_model=golden_head)
    other = golden_target.generate(ids, **call, custom_generate=hf_eagle3.drafting_with(golden_head, **knobs))
    assert other.sequences.tolist() == one.sequences.tolist() == golden_target.generate(ids, **call).sequences.tolist()
    assert other.acceptance_lengths == one.acceptance_lengths
    assert mean_acceptance(other) > 1.0
    if "output_scores" in options:
        assert all(torch.equal(a, b) for a, b in zip(one.scores, other.scores, strict=True))


def test_doors_draw_alike(golden_target, golden_head) -> None:
    texts = []
    for way in ({"assistant_model": golden_head}, {"custom_generate": hf_eagle3.drafting_with(golden_head)}):
        torch.manual_seed(3)
        out = golden_target.generate(prompt(12, vocabulary=500), max_new_tokens=20, do_sample=True, **way)
        texts.append(out.tolist())
    assert texts[0] == texts[1]


def test_both_doors_at_once_are_refused(golden_target, golden_head) -> None:
    with pytest.raises(ValueError, match="custom_generate"):
        golden_target.generate(
            prompt(), assistant_model=golden_head, custom_generate=hf_eagle3.drafting_with(golden_head)
        )


def test_drafting_with_something_else(target) -> None:
    with pytest.raises(TypeError, match="draft head"):
        hf_eagle3.drafting_with(target)


def test_the_other_door_refuses_as_the_first(target, head) -> None:
    way = hf_eagle3.drafting_with(head)
    for options in ({"num_beams": 2}, {"use_cache": False}, {"input_ids": prompt().repeat(2, 1)}):
        with pytest.raises(ValueError, match=r"head|Drafting"):
            target.generate(**({"input_ids": prompt(), "max_new_tokens": 4} | options), custom_generate=way)


# ---------------------------------------------------------------------- a head in a PeftModel


def test_a_head_in_a_peft_model(golden_target, golden_head) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(copy.deepcopy(golden_head), LoraConfig(target_modules=["q_proj", "fc"], r=2))
    ids = prompt(12, vocabulary=500)
    options = {"max_new_tokens": 24, "eos_token_id": None}
    bare = compare(golden_target, golden_head, options, input_ids=ids)
    fresh = compare(golden_target, wrapped, options, input_ids=ids)
    assert fresh.drafted.acceptance_lengths == bare.drafted.acceptance_lengths
    with torch.no_grad():  # an adapter that ruins the head is seen to be in use
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    plain = golden_target.generate(ids, **options)
    ruined = golden_target.generate(ids, **options, assistant_model=wrapped, return_dict_in_generate=True)
    assert ruined.sequences.tolist() == plain.tolist()
    assert mean_acceptance(ruined) < mean_acceptance(bare.drafted)
    way = hf_eagle3.drafting_with(wrapped)
    assert golden_target.generate(ids, **options, custom_generate=way).tolist() == plain.tolist()


def test_a_target_in_a_peft_model(golden_head) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(GOLDEN / "llama_target", dtype=torch.float32).eval()
    adapted = get_peft_model(target, LoraConfig(target_modules=["q_proj"], r=2)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    compare(adapted, golden_head, {"max_new_tokens": 20, "eos_token_id": None}, input_ids=prompt(12, vocabulary=500))


# ---------------------------------------------------------------------- transformers' pipeline


@pytest.mark.parametrize("how", ["when made", "when called"])
def test_text_generation_pipeline(golden_target, golden_head, how: str) -> None:
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "llama_target")
    text, call = "<t17> <t33> <t48> <t7>", {"max_new_tokens": 24, "do_sample": False}
    plain = pipeline("text-generation", model=golden_target, tokenizer=tokenizer)(text, **call)
    forwards: list[int] = []
    hook = golden_target.register_forward_pre_hook(lambda *given: forwards.append(1))
    more = {"assistant_model": golden_head}
    if how == "when made":
        drafted = pipeline("text-generation", model=golden_target, tokenizer=tokenizer, **more)(text, **call)
    else:
        drafted = pipeline("text-generation", model=golden_target, tokenizer=tokenizer)(text, **call, **more)
    hook.remove()
    assert drafted == plain
    assert len(forwards) < 24 / 1.2


# ---------------------------------------------------------------------- install and uninstall


WRAPPED = ((GenerationMixin, "generate"), (GenerationMixin, "_assisted_decoding"), (AutoModel, "from_pretrained"))


def current() -> list[Any]:
    return [inspect.getattr_static(owner, name) for owner, name in WRAPPED]


def test_install_twice_wraps_once(installed) -> None:
    before = current()
    hf_eagle3.install()
    hf_eagle3.install()
    assert current() == before
    hf_eagle3.uninstall()
    bare = current()
    assert all(now is not wrapped for now, wrapped in zip(bare, before, strict=True))
    hf_eagle3.uninstall()
    assert current() == bare


def test_uninstalled_is_transformers_own(installed) -> None:
    hf_eagle3.uninstall()
    for method in (GenerationMixin.generate, GenerationMixin._assisted_decoding, AutoModel.from_pretrained):
        assert inspect.unwrap(method).__module__.startswith("transformers")
        assert "hf_eagle3" not in inspect.getsourcefile(method.__code__ if hasattr(method, "__code__") else method)
    assert "generate" not in vars(type(tiny_target()))


def test_works_again_after_uninstall_and_install(target, head, installed) -> None:
    hf_eagle3.uninstall()
    plain = target.generate(prompt(), max_new_tokens=12)
    hf_eagle3.install()
    learn_text(target, head, {"max_new_tokens": 12}, input_ids=prompt())
    out = target.generate(prompt(), max_new_tokens=12, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.tolist()
    assert mean_acceptance(out) > 1.0


def test_wraps_keep_names_and_signatures() -> None:
    parameters = list(inspect.signature(GenerationMixin.generate).parameters)
    assert parameters[:3] == ["self", "inputs", "generation_config"]
    assert "assistant_model" in parameters
    assert GenerationMixin.generate.__name__ == "generate"
    assert GenerationMixin.generate.__doc__


def test_nothing_stays_on_target_or_head(golden_target, golden_head) -> None:
    """All state of a call lives in the call, or in the cache that it returns."""

    def traces() -> list[set[str]]:
        return [set(vars(thing)) for thing in (golden_target, golden_head, golden_target.config, golden_head.config)]

    call = {"max_new_tokens": 8, "assistant_model": golden_head}
    golden_target.generate(prompt(), **call)
    before, hooks = traces(), len(golden_target._forward_hooks)
    config = golden_target.generation_config.to_dict()
    golden_target.generate(prompt(), **call, tree_depth=2)
    assert traces() == before
    assert len(golden_target._forward_hooks) == hooks
    assert golden_target.generation_config.to_dict() == config
    assert golden_target.config._attn_implementation == "sdpa"


def test_gradients_are_off_and_the_mode_is_kept(golden_target, golden_head) -> None:
    out = golden_target.generate(
        prompt(), max_new_tokens=8, assistant_model=golden_head, output_logits=True, return_dict_in_generate=True
    )
    assert not any(logits.requires_grad for logits in out.logits)
    assert not any(layer.keys.requires_grad for layer in out.past_key_values.layers)
    assert not golden_target.training
    assert not golden_head.training


def test_a_head_by_default_grows_the_devices_tree(golden_target, golden_head) -> None:
    """The golden head's files name no tree: the call works without any knob."""
    assert golden_head.generation_config.tree_depth is None
    compare(golden_target, golden_head, {"max_new_tokens": 16, "eos_token_id": None}, input_ids=prompt(12))


def test_greedy_and_sampling_from_the_models_generation_config(golden_head) -> None:
    target = tiny_target()
    target.generation_config.do_sample = True
    target.generation_config.temperature = 0.7
    torch.manual_seed(0)
    head = oracle(target)
    out = target.generate(prompt(), max_new_tokens=10, assistant_model=head)
    torch.manual_seed(0)
    assert target.generate(prompt(), max_new_tokens=10, assistant_model=head).tolist() == out.tolist()
    head.learn(target.generate(prompt(), max_new_tokens=30, do_sample=False))
    drafted = target.generate(prompt(), max_new_tokens=20, do_sample=False, assistant_model=head)
    assert drafted.tolist() == target.generate(prompt(), max_new_tokens=20, do_sample=False).tolist()
