"""Loss, teacher, batches, the loop that resumes, and the whole of `hf-eagle3 train` on a tiny target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_eagle3.data.conversations import Conversation, save_conversations
from hf_eagle3.data.features import Example, FeatureCache, extract
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training.command import make_head
from hf_eagle3.training.dataset import Batch, bucketed, choose_vocabulary, collate, feature_scale, split
from hf_eagle3.training.initialisation import fresh_head
from hf_eagle3.training.losses import soft_cross_entropy, step_weights
from hf_eagle3.training.objective import Objective
from hf_eagle3.training.rollout import rollout, supervision
from hf_eagle3.training.trainer import HeadTrainer, Progress, Recipe, schedule

BOUNDARIES = [2, 4, 5]
RECIPE = Recipe(epochs=2, batch_tokens=120, stages=((1.0, 3),), autocast=False, learning_rate=3e-3, seed=5)


@pytest.fixture
def cache(target: LlamaForCausalLM, tmp_path: Path) -> FeatureCache:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in torch.randint(8, 40, (24,), generator=generator).tolist():
        row = Conversation()
        row.extend(torch.randint(2, 64, (5,), generator=generator).tolist(), 0)
        prompt = torch.tensor([row.ids])
        answer = target.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length, do_sample=False
        )
        row.extend(answer[0, 5:].tolist(), 2)
        rows.append(row)
    save_conversations(rows, tmp_path / "data" / "conversations-00000.safetensors")
    extract(target, tmp_path / "data", tmp_path / "features", BOUNDARIES)
    return FeatureCache(tmp_path / "features", BOUNDARIES)


def objective_for(target: LlamaForCausalLM, cache: FeatureCache, size: int = 40) -> Objective:
    vocabulary = choose_vocabulary(cache.mass, size, [1])
    head = fresh_head(target, vocabulary, boundaries=BOUNDARIES)
    output = target.get_output_embeddings().weight[vocabulary]
    scale = feature_scale(cache, list(range(len(cache))))
    return Objective(head, target.get_input_embeddings().weight, output, scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_soft_cross_entropy_is_the_plain_one(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 50)).to(dtype).requires_grad_()
    probs = torch.randn(7, 50).mul(2).softmax(-1).to(dtype)
    plain = logits.detach().float().requires_grad_()
    expected = -(probs.float() * plain.log_softmax(-1)).sum(-1).mean()
    found = soft_cross_entropy(logits, probs)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    (2 * found).backward()
    (2 * expected).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.float(), plain.grad, atol=tolerance / 5, rtol=tolerance)
    assert soft_cross_entropy(logits[:0], probs[:0]) == 0


def test_step_weights() -> None:
    assert step_weights(3) == pytest.approx([1 / 2.44, 0.8 / 2.44, 0.64 / 2.44])


def test_the_objective_is_its_definition(target: LlamaForCausalLM, cache: FeatureCache) -> None:
    """Row by row, nothing gathered: V(t, i), dropped rows, renormalised teacher, weights; values and gradients."""
    objective, steps = objective_for(target, cache, 12), 3
    head, batch = objective.head, collate([cache[i] for i in range(4)])
    loss, _ = objective(batch, steps)
    head.zero_grad()
    loss.backward()
    found = [parameter.grad.clone() for parameter in head.parameters()]
    fused = head.fuse(batch.features * objective.feature_scale)
    embedded = target.get_input_embeddings()(batch.ids).detach()
    every = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    valid, means, dropped = supervision(batch.answers, steps), [], 0
    for step, hidden in enumerate(rollout(head, fused, embedded, every, steps)):
        rows = []
        for b, t in valid[step].nonzero().tolist():
            teacher = target.lm_head(batch.last_hidden[b, t + 1 + step])
            if not head.t2d[teacher.argmax()]:
                dropped += 1
                continue
            wanted = teacher[head.t2d].softmax(-1).detach()
            rows.append(-(wanted * head.lm_head(head.norm(hidden[b, t])).log_softmax(-1)).sum())
        means.append(torch.stack(rows).mean())
    expected = sum(weight * mean for weight, mean in zip(step_weights(steps), means, strict=True))
    assert dropped > 0
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    head.zero_grad()
    expected.backward()
    for one, parameter in zip(found, head.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-5, rtol=1e-4)


def test_prefix_hits_count_what_a_chain_would_hit(target: LlamaForCausalLM, cache: FeatureCache) -> None:
    """Against drafting greedily with the head's own forward from every position of greedy data."""
    from transformers.cache_utils import DynamicCache

    objective, steps = objective_for(target, cache), 3
    head, example = objective.head, cache[0]
    counts = objective.prefix_hits(collate([example]), steps)
    expected = torch.zeros(steps, 2)
    embed, valid = target.get_input_embeddings(), supervision(example.answers[None], steps)
    for t in valid[0, 0].nonzero()[:, 0].tolist():
        states = DynamicCache()
        fused = head.fuse((example.features[: t + 1] * objective.feature_scale)[None])
        out = head(fused, inputs_embeds=embed(example.ids[1 : t + 2])[None], past_key_values=states, use_cache=True)
        alive = True
        for step in range(steps):
            drafted = head.to_target_ids(out.logits[0, -1].argmax())
            if not valid[step, 0, t]:
                break
            alive &= bool(drafted == example.ids[t + 2 + step])
            expected[step] += torch.tensor([float(alive), 1.0])
            token = example.ids[t + 2 + step][None, None]
            out = head(
                out.last_hidden_state[:, -1:], inputs_embeds=embed(token), past_key_values=states, use_cache=True,
                position_ids=torch.tensor([[t + 1 + step]]),
            )  # fmt: skip
    assert torch.equal(counts, expected)


def test_vocabulary_split_and_buckets(cache: FeatureCache) -> None:
    assert choose_vocabulary(torch.tensor([5.0, 1.0, 3.0, 0.0, 4.0]), 3, [3]).tolist() == [0, 3, 4]
    train, held_out = split(len(cache), 5, 0)
    assert len(held_out) == 2
    assert sorted(train + held_out) == list(range(len(cache)))
    batches = bucketed(cache, train, 120, 0)
    assert sorted(index for batch in batches for index in batch) == train
    assert all(len(batch) * max(map(cache.length, batch)) <= 120 or len(batch) == 1 for batch in batches)
    assert batches == bucketed(cache, train, 120, 0) != bucketed(cache, train, 120, 1)


def test_padding_changes_nothing(target: LlamaForCausalLM, cache: FeatureCache) -> None:
    objective = objective_for(target, cache)
    examples: list[Example] = [cache[i] for i in range(4)]
    together = objective.prefix_hits(collate(examples), 2)
    apart: torch.Tensor = sum(objective.prefix_hits(collate([example]), 2) for example in examples)  # type: ignore
    assert torch.equal(together, apart)
    batch: Batch = collate(examples)
    assert not (
        batch.answers & (torch.arange(batch.ids.shape[1]) >= torch.tensor([[len(e.ids)] for e in examples]))
    ).any()


def test_resuming_takes_the_same_steps(target: LlamaForCausalLM, cache: FeatureCache, tmp_path: Path) -> None:
    indices = list(range(len(cache)))

    def losses(folder: Path, steps: list[int]) -> list[float]:
        found: list[float] = []

        def note(progress: Progress) -> None:
            found.append(progress.loss)

        for count in steps:
            torch.manual_seed(len(found))
            trainer = HeadTrainer(objective_for(target, cache), cache, indices, RECIPE, folder)
            trainer.run(note, max_steps=count)
            trainer.save()
        return found

    whole, parts = losses(tmp_path / "whole", [7]), losses(tmp_path / "parts", [3, 2, 2])
    assert whole == pytest.approx(parts, abs=1e-6)
    assert len(whole) == 7


def test_the_run_ends_where_the_recipe_says(target: LlamaForCausalLM, cache: FeatureCache) -> None:
    indices = list(range(len(cache)))
    trainer = HeadTrainer(objective_for(target, cache), cache, indices, RECIPE, None)
    progress = trainer.run()
    assert progress.step == 2 * trainer.per_epoch
    assert trainer.share() == 1.0
    hurried = HeadTrainer(objective_for(target, cache), cache, indices, replace(RECIPE, max_minutes=1e-6), None)
    assert hurried.run().step == 1


def test_schedule_warms_up_and_cools_down() -> None:
    values = [schedule(share / 100, RECIPE) for share in range(101)]
    top = values.index(max(values))
    assert values[0] < 0.1
    assert max(values) <= 1.0
    assert values[-1] == pytest.approx(RECIPE.final_share)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_export_folds_the_feature_scale(target: LlamaForCausalLM, cache: FeatureCache, tmp_path: Path) -> None:
    objective = objective_for(target, cache)
    trainer = HeadTrainer(objective, cache, list(range(20)), RECIPE, None)
    trainer.export(tmp_path / "head", torch.float32)
    head = Eagle3DraftModel.from_pretrained(tmp_path / "head")
    raw = cache[0].features
    torch.testing.assert_close(
        head.fuse(raw), objective.head.fuse(raw * objective.feature_scale), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(head.d2t, objective.head.d2t)
    assert head.config.target_boundaries == BOUNDARIES
    assert not any("embed_tokens" in name for name in head.state_dict())


def test_train_from_nothing_to_a_head(
    target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_eagle3.data import self_prompting
    from hf_eagle3.data.filters import Uniqueness

    monkeypatch.setattr(self_prompting, "acceptable_prompt", lambda text, ids, longest: bool(ids))
    monkeypatch.setattr(Uniqueness, "admit", lambda self, text, sampled=None: True)
    measured = make_head(
        target, tokenizer, tmp_path / "head", tmp_path / "work", answer_tokens=600, draft_vocab_size=40,
        recipe=replace(RECIPE, epochs=1.0), boundaries=BOUNDARIES,
    )  # fmt: skip
    assert measured["answer_tokens"] >= 600
    assert len(measured["held_out_prefix_hits"]) == 5
    assert json.loads((tmp_path / "head" / "training.json").read_text()) == measured
    head = Eagle3DraftModel.from_pretrained(tmp_path / "head")
    assert head.dtype == torch.bfloat16
    assert head.config.draft_vocab_size == 40
    again = make_head(
        target, tokenizer, tmp_path / "other", tmp_path / "new-work", draft_vocab_size=40,
        data=tmp_path / "work" / "text", recipe=replace(RECIPE, epochs=1.0), boundaries=BOUNDARIES,
    )  # fmt: skip
    assert again["conversations"] == measured["conversations"]
    assert again["answer_tokens"] == measured["answer_tokens"]
