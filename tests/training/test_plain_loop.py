"""The objective against a second transcription of the specification, written by somebody who had not seen it.

`plain_training` goes row by row; `dense_training`, the usual plain form, is the baseline of the trainer's speed and
must meet the same figures, or that comparison would say nothing. On the small trained target and head of the official
program's golden runs: the same losses, the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.dense_training import dense_batch_loss
from helpers.plain_training import plain_batch_loss, supervised
from helpers.targets import GOLDEN
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.data.features import TargetStates
from hf_eagle3.training.batches import Collator, Item
from hf_eagle3.training.objective import LossSettings, TrainingTimeTest

STEPS = 4
# Length, and where the answers are: one turn, an answer from the first token on, two turns, one too short to teach.
CHATS = [(24, [(8, 24)]), (17, [(0, 17)]), (40, [(6, 15), (22, 39)]), (9, [(7, 9)])]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(GOLDEN / f"{request.param}_target", dtype=torch.float32).eval()
    head = AutoModel.from_pretrained(GOLDEN / f"eagle3_{request.param}_head", dtype=torch.float32)
    return target, head


@pytest.fixture(scope="module")
def material(pair: tuple[Any, Any]) -> tuple[list[Item], list[tuple[torch.Tensor, ...]], TargetStates]:
    """The conversations as our items, and as the plain loop takes them: with full logits of the target."""
    target, head = pair
    generator = torch.Generator().manual_seed(0)
    layers = target.config.num_hidden_layers
    boundaries = head.config.boundaries_for(layers)
    states, rows = TargetStates(target, boundaries), []
    for length, answers in CHATS:
        prompt = torch.randint(3, target.config.vocab_size, (1, 4), generator=generator)
        ids = target.generate(prompt, min_new_tokens=length - 4, max_new_tokens=length - 4, do_sample=True)[0]
        rows.append((ids.tolist(), [any(first <= j < last for first, last in answers) for j in range(length)]))
    items = [(example, 50 + number) for number, example in enumerate(states.examples(rows))]
    plain = []
    for ids, mask in rows:
        with torch.no_grad():
            out = target(torch.tensor([ids]), output_hidden_states=boundaries)
        features = torch.cat([out.hidden_states[boundary][0] for boundary in boundaries], -1)
        plain.append((torch.tensor(ids), torch.tensor(mask), features, out.logits[0]))
    return items, plain, states


@pytest.mark.parametrize("oracle", [plain_batch_loss, dense_batch_loss])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled features"])
def test_losses_and_gradients_are_those_of_the_plain_loop(
    pair: tuple[Any, Any], material: Any, packed: bool, scaled: bool, oracle: Callable[..., Any]
) -> None:
    target, head = pair
    items, plain, states = material
    embeddings = head.input_embeddings_for(target)
    generator = torch.Generator().manual_seed(1)
    scale = 2.0 ** torch.randint(-2, 3, (head.fc.in_features,), generator=generator) if scaled else None
    objective = TrainingTimeTest(head, embeddings, states.logit_rule, scale, LossSettings(decay=0.8))
    head.requires_grad_(True).zero_grad()
    out = objective(STEPS, **Collator(packed)(items))
    out["loss"].backward()
    ours = {name: parameter.grad.clone() for name, parameter in head.named_parameters() if parameter.grad is not None}
    head.zero_grad()
    if scale is not None:
        plain = [(ids, mask, features * scale, logits) for ids, mask, features, logits in plain]
    loss, each = oracle(head, embeddings, plain, STEPS, 0.8)
    loss.backward()
    print(f"ours {out['step_losses'].tolist()}, plain {[step.item() for step in each]}")
    torch.testing.assert_close(out["loss"], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out["step_losses"], torch.stack([step.detach() for step in each]), atol=1e-5, rtol=1e-5)
    theirs = {name: parameter.grad for name, parameter in head.named_parameters() if parameter.grad is not None}
    assert {"fc.weight", "lm_head.weight", "layers.0.self_attn.k_proj.weight"} <= set(ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=f"the gradient of {name} differs")


def test_the_oracle_supervises_what_its_worked_example_says() -> None:
    """A prompt of two tokens, an answer of four: three states of step 0, two of step 1, one of step 2."""
    visited = supervised(torch.tensor([False, False, True, True, True, True]), 3)
    assert visited.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [2, 1]]
