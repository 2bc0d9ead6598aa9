"""The objective: its divisors, its parts, packed against padded, and the way in and out of a head's files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_eagle3.data.features import LogitRule, TargetStates
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training import losses
from hf_eagle3.training.batches import Batch, Collator, Item
from hf_eagle3.training.objective import LossSettings, TrainingTimeTest
from hf_eagle3.training.rollout import supervision

STEPS = 3


@pytest.fixture
def items(target: Any, head: Eagle3DraftModel) -> list[Item]:
    """Three conversations of 12, 9 and 17 random tokens; the last has two answers."""
    generator = torch.Generator().manual_seed(3)
    states = TargetStates(target, head.config.boundaries_for(8))
    rows = []
    for length, answers in ((12, [(4, 12)]), (9, [(3, 9)]), (17, [(2, 8), (11, 17)])):
        mask = [any(first <= j < last for first, last in answers) for j in range(length)]
        rows.append((torch.randint(2, 64, (length,), generator=generator).tolist(), mask))
    return [(example, 100 + number) for number, example in enumerate(states.examples(rows))]


@pytest.fixture
def batch(items: list[Item]) -> Batch:
    return Collator(packed=False)(items)


def objective(head: Any, target: Any, scale: torch.Tensor | None = None, **settings: Any) -> TrainingTimeTest:
    rule = LogitRule(target.lm_head.weight.detach())
    return TrainingTimeTest(head, target.get_input_embeddings(), rule, scale, LossSettings(**settings))


def test_the_divisor_counts_what_inference_visits(head: Any, target: Any, batch: Batch) -> None:
    counted = objective(head, target).counts(batch, STEPS)
    valid = supervision(batch["answers"], batch["documents"], STEPS)
    assert counted.tolist() == valid.sum((1, 2)).tolist()
    fewer = objective(head, target, anchor_share=0.5).counts(batch, STEPS)
    assert fewer[0] == counted[0]
    assert 0 < fewer[1] < counted[1]


@pytest.mark.parametrize("kind", ["soft_ce", "kl", "lk"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_packed_equals_padded(head: Any, target: Any, items: list[Item], kind: str, share: float) -> None:
    """Loss and gradients, with anchors drawn and without."""
    results = []
    for packed in (False, True):
        head.zero_grad()
        out = objective(head, target, kind=kind, anchor_share=share)(STEPS, **Collator(packed)(items))
        out["loss"].backward()
        results.append((out["loss"].detach(), {name: p.grad.clone() for name, p in head.named_parameters()}))
    (loss, gradients), (other, others) = results
    torch.testing.assert_close(loss, other, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-5, rtol=1e-4, msg=name)


def test_parts_of_a_batch_add_up(head: Any, target: Any, items: list[Item]) -> None:
    """With the whole batch's divisor, micro-batches sum to the batch: what accumulation and DDP rest on."""
    whole = objective(head, target, anchor_share=0.5)
    together = Collator(packed=False)(items)
    divisors = whole.counts(together, STEPS)
    parts = sum(whole(STEPS, divisors, **Collator(packed=False)([item]))["loss"] for item in items)
    torch.testing.assert_close(parts, whole(STEPS, **together)["loss"], atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_no_gradient(head: Any, target: Any, batch: Batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        part = objective(head, target).train()
        if checkpointing:
            part.activation_checkpointing_enable()
        head.zero_grad()
        part(STEPS, **batch)["loss"].backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_best_token_outside_the_vocabulary_costs_nothing(head: Any, target: Any, batch: Batch) -> None:
    outside = dict(batch, best=torch.full_like(batch["best"], 63))
    assert not head.t2d[63]
    assert objective(head, target)(STEPS, **outside)["loss"] == 0


def test_regression_compares_each_state_with_what_the_target_had_there(
    head: Any, target: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of row t at step i drafts token t + 2 + i, which the target chose from its state at t + 1 + i."""
    wanted: list[torch.Tensor] = []

    def keep(states: torch.Tensor, of_target: torch.Tensor) -> torch.Tensor:
        wanted.append(of_target)
        return states.sum()

    monkeypatch.setattr(losses, "regression", keep)
    objective(head, target, ce=0.0, regression=1.0)(STEPS, **batch)
    valid = supervision(batch["answers"], batch["documents"], STEPS)
    for step, given in enumerate(wanted):
        expected = [batch["last_hidden"][row, t + 1 + step] for row, t in valid[step].nonzero().tolist()]
        assert torch.equal(given, torch.stack(expected))
    assert len(wanted) == STEPS


def test_regression_pulls_towards_the_last_hidden_state(head: Any, target: Any, batch: Batch) -> None:
    alone = objective(head, target, ce=0.0, regression=1.0)
    loss = alone(STEPS, **batch)["loss"]
    far = dict(batch, last_hidden=batch["last_hidden"] + 10)
    assert alone(STEPS, **far)["loss"] > loss > 0
    both = objective(head, target, ce=0.1, regression=1.0)(STEPS, **batch)["loss"]
    plain = objective(head, target)(STEPS, **batch)["loss"]
    torch.testing.assert_close(both, loss + 0.1 * plain, atol=1e-5, rtol=1e-5)


def test_lk_uses_the_whole_vocabulary(head: Any, target: Any, batch: Batch) -> None:
    """The acceptance term knows how much probability the draft vocabulary misses."""
    part = objective(head, target, kind="lk")
    teacher = part._teach(batch)
    where = batch["answers"][:, :-1] & batch["answers"][:, 1:]
    probs = target.lm_head(batch["last_hidden"][:, :-1][where]).softmax(-1)[:, head.t2d]
    assert teacher.share is not None
    torch.testing.assert_close(teacher.share, probs.sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(teacher.probs * teacher.share[:, None], probs, atol=1e-5, rtol=1e-5)


def test_prefix_hits_count_chains(head: Any, target: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the count by hand: drafts made up, two thirds of them right, on data that leaves the target's choice
    here and there."""
    generator, (rows, tokens) = torch.Generator().manual_seed(4), batch["ids"].shape
    following = batch["ids"].roll(-1, 1) % 40  # all of the draft vocabulary
    ids = following.roll(1, 1)
    best = torch.where(torch.rand(rows, tokens, generator=generator) < 0.85, following, 50)
    choice = best.roll(-1, 1)  # of the target one position on, about which a step-0 state drafts
    plan = torch.stack([choice.roll(-step, 1) for step in range(STEPS)])
    plan = torch.where(torch.rand(plan.shape, generator=generator) < 0.67, plan, 3) % 40

    def planned(core: Any, sequences: Any, rows: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
        for step in range(steps):
            yield plan[step].gather(1, rows)

    part = objective(head, target)
    monkeypatch.setattr("hf_eagle3.training.objective.rollout", planned)
    monkeypatch.setattr(part.core, "norm", torch.nn.Identity())
    monkeypatch.setattr(part.core.lm_head, "forward", lambda drafts: torch.nn.functional.one_hot(drafts, 40))
    batch = dict(batch, ids=ids, best=best)
    hits, of = [0] * STEPS, [0] * STEPS
    valid = supervision(batch["answers"], batch["documents"], STEPS)
    for row, t in valid[0].nonzero().tolist():
        right = True
        for step in range(STEPS):
            if not valid[step, row, t]:
                break
            chosen = best[row, t + 1 + step]
            right = right and bool(plan[step, row, t] == chosen)
            of[step] += 1
            hits[step] += right
            if ids[row, t + 2 + step] != chosen:
                break
    assert part.prefix_hits(batch, STEPS).T.tolist() == [hits, of]
    assert 0 < hits[2] < hits[1] < hits[0] < of[0]
    assert of[2] < of[1] < of[0]


def test_export_folds_the_scale_exactly_and_back(head: Any, target: Any, batch: Batch) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = 2.0 ** torch.randint(-6, 7, (96,), generator=generator)
    part = objective(head, target, scale)
    loss = part(STEPS, **batch)["loss"]
    exported = part.exported()
    torch.testing.assert_close(objective(exported, target)(STEPS, **batch)["loss"], loss, atol=1e-5, rtol=1e-5)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with torch.no_grad():
        head.fc.weight.zero_()
    part.load_exported(exported.state_dict())
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in exported.parameters())


def test_other_scales_are_refused(head: Any, target: Any) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        objective(head, target, torch.full((96,), 3.0))


def test_an_adapter_alone_learns(head: Any, target: Any, batch: Batch) -> None:
    adapted = get_peft_model(head, LoraConfig(r=2, target_modules=["q_proj", "down_proj", "fc"]))
    part = objective(adapted, target)
    part(STEPS, **batch)["loss"].backward()
    learning = {name for name, parameter in part.named_parameters() if parameter.grad is not None}
    assert learning
    assert all("lora_" in name for name in learning)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    loss = part(STEPS, **batch)["loss"]
    merged = part.exported()
    assert type(merged) is Eagle3DraftModel
    torch.testing.assert_close(objective(merged, target)(STEPS, **batch)["loss"], loss, atol=1e-5, rtol=1e-5)


def test_the_targets_embeddings_are_neither_trained_nor_saved(head: Any, target: Any) -> None:
    part = objective(head, target)
    assert not any("embed" in name for name in (*part.state_dict(), *dict(part.named_parameters())))


@pytest.mark.parametrize("wrong", [{"kind": "mse"}, {"decay": 0.0}, {"anchor_share": 0.0}, {"regression": -1.0}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"choose one of|lie above 0"):
        LossSettings(**wrong)
