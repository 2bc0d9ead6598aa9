"""Which implementation a target runs: chosen when a head first meets it, kept, and given back by `uninstall()`."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import oracle
from helpers.targets import VOCABULARY, prompt, tiny_target
from helpers.trees import left_padded
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import hf_eagle3
from hf_eagle3 import switching
from hf_eagle3.attention import EAGLE3_TREE, backend_of


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if targets were on a GPU with Triton: the only question that this machine would answer otherwise."""
    monkeypatch.setattr(switching, "kernel_pays", lambda target: True)
    yield
    switching.restore_all()


def drafts(target: PreTrainedModel, **options: Any) -> None:
    """Same tokens with a head, at an acceptance length above 1.5."""
    compare(target, oracle(target), {"max_new_tokens": 24} | options, least=1.5, input_ids=prompt())


# ---------------------------------------------------------------------- chosen


@pytest.mark.parametrize(
    ("family", "before"), [("llama", "sdpa"), ("gemma3", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_chosen_where_it_pays(on_a_gpu, family: str, before: str) -> None:
    """sdpa is what transformers chooses by itself, and eager for a model without sdpa. `uninstall` gives it back."""
    target = tiny_target(family, attention=None)
    assert backend_of(target) == before
    drafts(target)
    assert backend_of(target) == EAGLE3_TREE
    hf_eagle3.uninstall()
    try:
        assert backend_of(target) == before
        hf_eagle3.uninstall()
        assert backend_of(target) == before
    finally:
        hf_eagle3.install()
    drafts(target)
    assert backend_of(target) == EAGLE3_TREE, "and is chosen again when they meet again"


def test_a_window_is_no_limit_from_then_on(on_a_gpu) -> None:
    target = tiny_target("gpt_oss", attention=None, sliding_window=12)
    drafts(target, max_new_tokens=50)


def test_not_chosen_elsewhere() -> None:
    target = tiny_target(attention=None)
    drafts(target)
    assert backend_of(target) == "sdpa"


@pytest.mark.parametrize("backend", ["eager", EAGLE3_TREE])
def test_what_somebody_chose_stays(on_a_gpu, backend: str) -> None:
    """Llama has sdpa, so eager was somebody's wish; and what was ours from the start is not taken away."""
    target = tiny_target(attention=backend)
    drafts(target)
    assert backend_of(target) == backend
    switching.restore_all()
    assert backend_of(target) == backend


def test_what_somebody_chooses_later_stays(on_a_gpu) -> None:
    target = tiny_target(attention=None)
    drafts(target)
    target.set_attn_implementation("sdpa")
    drafts(target)
    assert backend_of(target) == "sdpa"
    target.config._attn_implementation = "flex_attention"
    switching.restore_all()
    assert target.config._attn_implementation == "flex_attention"


def test_only_the_decoder_of_a_composite_target(on_a_gpu) -> None:
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 12}
    text |= {"initializer_range": 0.6, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4}
    tokens = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    target = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **tokens)).eval()
    target.generation_config.eos_token_id, target.generation_config.pad_token_id = None, 0
    drafts(target, max_new_tokens=40)
    config = target.config
    assert config.text_config._attn_implementation == EAGLE3_TREE
    assert config._attn_implementation == config.vision_config._attn_implementation == "sdpa"
    switching.restore_all()
    assert config.text_config._attn_implementation == "sdpa"


# ---------------------------------------------------------------------- declined


class ForgetsTrees(LlamaForCausalLM):
    """Takes a bool mask for a tree, and no other."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dtype == torch.int32:
            attention_mask = None
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class RefusesTrees(LlamaForCausalLM):
    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dtype == torch.int32:
            raise RuntimeError("bool masks only")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class LooksAtTheName(LlamaForCausalLM):
    """Ordinary calls depend on the name of the implementation, as a few models' do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if self.config._attn_implementation != "sdpa":
            out.logits = out.logits.roll(1, dims=-1)
        return out


def falcon() -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(1)
    config = FalconConfig(**sizes, **tokens, alibi=False, initializer_range=0.6)
    return FalconForCausalLM(config).eval()


def gemma4(**fields: Any) -> PreTrainedModel:
    """Its last layers share keys, and skip the rows whose logits nobody wants unless the implementation is "sdpa"."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8}
    sizes |= {"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 3}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    layers = (["sliding_attention", "full_attention"] * 4)[1:]
    torch.manual_seed(0)
    config = Gemma4TextConfig(**sizes, **tokens, layer_types=layers, initializer_range=0.3, **fields)
    return Gemma4ForCausalLM(config).eval()


def test_keys_that_layers_share_slide_too() -> None:
    """Asked for explicitly, `generate` is exact: it never wants the logits of several rows of a prompt."""
    drafts(gemma4(sliding_window=12, attn_implementation=EAGLE3_TREE), max_new_tokens=40)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: tiny_target(cls=ForgetsTrees, attention=None), "attention interface"),
        (lambda: tiny_target(cls=RefusesTrees, attention=None), "bool masks only"),
        (lambda: tiny_target(cls=LooksAtTheName, attention=None), "ordinary calls would differ"),
        (falcon, "attention interface"),
        (gemma4, "ordinary calls would differ"),
    ],
    ids=["forgets", "refuses", "name", "falcon", "gemma4"],
)
def test_a_target_that_cannot_keeps_what_it_had(on_a_gpu, make: Any, why: str, caplog, monkeypatch) -> None:
    """Drafted as it is; the reason is told once, in one line."""
    target = make()
    before = backend_of(target)
    with caplog.at_level(logging.INFO, logger="hf_eagle3"):
        drafts(target)
        drafts(target)
    assert backend_of(target) == before
    lines = [record.getMessage() for record in caplog.records if "keeps attention" in record.getMessage()]
    assert len(lines) == 1
    assert why in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_error_that_is_no_verdict(on_a_gpu, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    target = tiny_target(attention=None)

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(switching, "check_target", fail)
        with pytest.raises(error):
            target.generate(prompt(), max_new_tokens=4, assistant_model=oracle(target))
    assert backend_of(target) == "sdpa"
    drafts(target)
    assert backend_of(target) == EAGLE3_TREE


def test_training_mode_is_no_verdict_either(on_a_gpu) -> None:
    target = tiny_target("qwen3", attention=None, attention_dropout=0.5).train()
    with pytest.raises(ValueError, match="training mode"):
        target.generate(prompt(), max_new_tokens=4, assistant_model=oracle(target))
    assert backend_of(target) == "sdpa"
    drafts(target.eval())
    assert backend_of(target) == EAGLE3_TREE


# ---------------------------------------------------------------------- asked for, and impossible


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: tiny_target(cls=ForgetsTrees, attention=EAGLE3_TREE), "attention interface"),
        (lambda: tiny_target(cls=RefusesTrees, attention=EAGLE3_TREE), "bool masks only"),
        (lambda: codegen(), "."),
    ],
    ids=["forgets", "refuses", "codegen"],
)
def test_asked_for_and_impossible(make: Any, why: str) -> None:
    target = make()
    with pytest.raises(ValueError, match=rf"cannot verify a draft tree \(.*{why}.*\); load it with") as error:
        target.generate(prompt(), max_new_tokens=8, assistant_model=oracle(target))
    assert "\n" not in str(error.value)
    assert backend_of(target) == EAGLE3_TREE


def codegen() -> PreTrainedModel:
    """One that loads with any name; Falcon and GPT-J, with classes by name, are refused by transformers itself."""
    sizes = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 7, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return CodeGenForCausalLM(CodeGenConfig(**sizes, **tokens, attn_implementation=EAGLE3_TREE)).eval()


def test_a_name_that_is_not_ours() -> None:
    target = tiny_target(attention="flex_attention")
    with pytest.raises(ValueError, match=r"'flex_attention', which cannot express a draft tree.*eagle3_tree"):
        target.generate(prompt(), max_new_tokens=8, assistant_model=oracle(target))


# ---------------------------------------------------------------------- threads, and what is left behind


def test_two_threads_meet_one_target(on_a_gpu) -> None:
    """And a third one generates plainly all the while."""
    target = tiny_target("gpt_oss", attention=None, sliding_window=12)
    head = oracle(target)
    prompts = [prompt(9), prompt(11, seed=1)]
    for ids in prompts:
        head.learn(target.generate(ids, max_new_tokens=52))
    plain = [target.generate(ids, max_new_tokens=40).tolist() for ids in prompts]
    start = threading.Barrier(3, timeout=60)

    def answer(way: int) -> Any:
        start.wait()
        if way == 2:
            return [target.generate(prompts[0], max_new_tokens=40).tolist() for _ in range(3)]
        return target.generate(prompts[way], max_new_tokens=40, assistant_model=head).tolist()

    with ThreadPoolExecutor(3) as pool:
        first, second, plainly = pool.map(answer, range(3))
    assert [first, second] == plain
    assert plainly == [plain[0]] * 3
    assert backend_of(target) == EAGLE3_TREE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@torch.no_grad()
def test_a_forward_under_way_when_the_implementation_changes(on_a_gpu, family: str) -> None:
    """As another thread's would be: it began with one kind of mask, and its later layers run the other function."""
    target = (
        tiny_target(family, attention=None, sliding_window=12) if family != "llama" else tiny_target(attention=None)
    )
    before = backend_of(target)
    ids, mask = left_padded(prompt(20), 3)
    plain = target(ids, attention_mask=mask).logits
    drafts(target)
    target.set_attn_implementation(before)
    for first, second in ((before, EAGLE3_TREE), (EAGLE3_TREE, before)):
        target.set_attn_implementation(first)
        hook = target.model.layers[3].register_forward_pre_hook(
            lambda *_, name=second: target.set_attn_implementation(name)
        )
        assert torch.equal(target(ids, attention_mask=mask).logits, plain)
        hook.remove()


def test_a_target_is_not_kept_alive(on_a_gpu) -> None:
    target = tiny_target(attention=None)
    drafts(target)
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None
    switching.restore_all()
