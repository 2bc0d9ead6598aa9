"""transformers' own assistants with our package imported: untouched, and ours through its own assisted loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.oracle import OracleDrafter, oracle
from helpers.targets import prompt, tiny_target
from transformers import LlamaForCausalLM

import hf_eagle3
from hf_eagle3.drafters.eagle3 import Eagle3CandidateGenerator

NEW = 40


def forwards_of(model) -> list[int]:
    """How many tokens each forward of `model` takes in, from now on."""
    seen: list[int] = []

    def note(module: Any, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        seen.append(ids.shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_a_small_llama_as_assistant() -> None:
    target, assistant = tiny_target(), tiny_target()  # the same weights: everything it drafts is accepted
    plain = target.generate(prompt(), max_new_tokens=NEW)
    seen = forwards_of(target)
    out = target.generate(prompt(), max_new_tokens=NEW, assistant_model=assistant, num_assistant_tokens=5)
    assert out.tolist() == plain.tolist()
    assert len(seen) < NEW / 2, "the assistant's drafts must have been accepted"


def test_another_llama_as_assistant_samples() -> None:
    target, assistant = tiny_target(), tiny_target(seed=9)
    texts = []
    for wrapped in (True, False):
        (hf_eagle3.install if wrapped else hf_eagle3.uninstall)()
        try:
            torch.manual_seed(0)
            call = {"max_new_tokens": NEW, "do_sample": True, "assistant_model": assistant}
            texts.append(target.generate(prompt(), **call).tolist())
        finally:
            hf_eagle3.install()
    assert texts[0] == texts[1]


def test_prompt_lookup() -> None:
    target = tiny_target()
    plain = target.generate(prompt(), max_new_tokens=NEW)
    ids = torch.cat((plain[:, :25], prompt()), dim=1)  # its own text stands in the prompt
    expected = target.generate(ids, max_new_tokens=NEW)
    out = target.generate(ids, max_new_tokens=NEW, prompt_lookup_num_tokens=4)
    assert out.tolist() == expected.tolist()


def test_a_head_and_prompt_lookup_at_once_are_refused(target, head) -> None:
    with pytest.raises(ValueError, match="another way of drafting"):
        target.generate(prompt(), assistant_model=head, prompt_lookup_num_tokens=4)


class ConstantDFlash(torch.nn.Module):
    """Stands in for a DFlash assistant: drafts what the states it is given put in its mouth; wrong, mostly."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_target().config
        self.config.target_layer_ids, self.config.block_size, self.config.mask_token_id = [1, 4], 4, 0
        self.generation_config = SimpleNamespace(num_assistant_tokens_schedule="constant")
        self.device = torch.device("cpu")
        self.calls = 0

    def forward(self, noise_embeds: torch.Tensor, context_hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        self.calls += 1
        context = context_hidden_states[..., -noise_embeds.shape[-1] :]
        assert context_hidden_states.shape[-1] == 2 * noise_embeds.shape[-1], "two captured states"
        rows = noise_embeds.shape[1]
        for layer in range(self.config.num_hidden_layers):
            keys = torch.zeros(1, 2, kwargs["position_ids"].shape[-1], 8)
            kwargs["past_key_values"].update(keys, keys, layer)
        return SimpleNamespace(last_hidden_state=context[:, -1:].expand(-1, rows, -1) + noise_embeds)


def test_dflash() -> None:
    target, assistant = tiny_target(), ConstantDFlash()
    plain = target.generate(prompt(), max_new_tokens=20)
    out = target.generate(prompt(), max_new_tokens=20, assistant_model=assistant, speculation_type="dflash")
    assert out.tolist() == plain.tolist()
    assert assistant.calls > 3


def test_beams_and_batches_without_a_head(target) -> None:
    two = torch.cat((prompt(), prompt(seed=1)))
    for options in ({"num_beams": 2}, {}, {"num_return_sequences": 2, "do_sample": True}):
        texts = []
        for wrapped in (True, False):
            (hf_eagle3.install if wrapped else hf_eagle3.uninstall)()
            try:
                torch.manual_seed(0)
                texts.append(target.generate(two, max_new_tokens=8, **options).tolist())
            finally:
                hf_eagle3.install()
        assert texts[0] == texts[1]


# ---------------------------------------------------------------------- our drafters in transformers' loop


def lent_to_transformers(target, head, drafter_class: type, **shape: int):
    """`target`, as a class whose stock assisted loop gets our candidate generator."""

    class Lent(LlamaForCausalLM):
        def _get_candidate_generator(self, generation_config: Any, **kwargs: Any) -> Any:
            tree = hf_eagle3.TreeShape(**shape)
            made.append(drafter_class(head, self, tree, max_length=generation_config.max_length))
            return made[-1]

    made: list[Any] = []
    lent = Lent(target.config).eval()
    lent.load_state_dict(target.state_dict())
    lent.generation_config = target.generation_config
    return lent, made


STOCK = {"prompt_lookup_num_tokens": 2}  # lets `generate` choose the assisted loop


def test_stock_loop_with_the_eagle3_drafter(golden_target, golden_head) -> None:
    shape = {"num_assistant_tokens": 20, "tree_depth": 5, "tree_top_k": 4}
    lent, made = lent_to_transformers(golden_target, golden_head, Eagle3CandidateGenerator, **shape)
    for seed in range(3):
        ids = prompt(12, seed=seed, vocabulary=500)
        plain = golden_target.generate(ids, max_new_tokens=NEW, eos_token_id=None)
        seen = forwards_of(lent)
        out = lent.generate(ids, max_new_tokens=NEW, eos_token_id=None, **STOCK)
        assert out.tolist() == plain.tolist()
        print(f"{(NEW - 1) / (len(seen) - 1):.2f} tokens per verification")
        assert len(seen) < NEW / 1.5, "its best chains must have been accepted"
    assert len(made) == 3


def test_stock_loop_accepts_what_our_chain_would(golden_target, golden_head) -> None:
    """Where the tree is a chain both loops verify the same drafts, so they need the same number of forwards."""
    chain = {"num_assistant_tokens": 4, "tree_depth": 4, "tree_top_k": 1}
    lent, _ = lent_to_transformers(golden_target, golden_head, Eagle3CandidateGenerator, **chain)
    ids = prompt(12, vocabulary=500)
    seen = forwards_of(lent)
    call = {"max_new_tokens": NEW, "eos_token_id": None}
    lent.generate(ids, **call, **STOCK)
    out = golden_target.generate(ids, **call, **chain, assistant_model=golden_head, return_dict_in_generate=True)
    assert len(seen) - 1 == len(out.acceptance_lengths[0])


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}, {"eos_token_id": "twelfth"}])
def test_stock_loop_with_the_oracle(target, options: dict[str, Any]) -> None:
    if options.get("eos_token_id") == "twelfth":
        options = {"eos_token_id": int(target.generate(prompt(), max_new_tokens=12)[0, -1])}
    head = oracle(target)
    shape = {"num_assistant_tokens": 14, "tree_depth": 5, "tree_top_k": 4}
    lent, _ = lent_to_transformers(target, head, OracleDrafter, **shape)
    processors = {name: value for name, value in options.items() if name != "eos_token_id"}
    head.learn(target.generate(prompt(), max_new_tokens=NEW + 10, **processors))
    plain = target.generate(prompt(), max_new_tokens=NEW, **options)
    seen = forwards_of(lent)
    out = lent.generate(prompt(), max_new_tokens=NEW, **options, **STOCK)
    assert out.tolist() == plain.tolist()
    verifications, tokens = len(seen) - 1, out.shape[1] - 9 - 1
    print(f"{tokens / verifications:.2f} tokens per verification")
    assert verifications < tokens / 1.5


def test_our_loop_on_the_lent_class_is_not_disturbed(target) -> None:
    """`assistant_model=head` does not go through transformers' candidate generators."""
    head = oracle(target)
    lent, made = lent_to_transformers(target, head, OracleDrafter, num_assistant_tokens=3, tree_depth=3, tree_top_k=1)
    head.learn(target.generate(prompt(), max_new_tokens=30))
    out = lent.generate(prompt(), max_new_tokens=20, assistant_model=head)
    assert out.tolist() == target.generate(prompt(), max_new_tokens=20).tolist()
    assert not made
