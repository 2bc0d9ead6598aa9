"""From cached examples to padded batches: held-out split, draft vocabulary, length-bucketed order, collation."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from ..data.features import Example, FeatureCache


@dataclass
class Batch:
    """Right-padded examples, `[batch, tokens]` each; `features` and `last_hidden` have a width besides."""

    ids: torch.Tensor
    answers: torch.Tensor
    features: torch.Tensor
    last_hidden: torch.Tensor
    argmax: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def collate(examples: list[Example]) -> Batch:
    """Pad on the right; padding is no answer, so no loss and, being later, no key ever reads it."""

    def pad(name: str, value: float = 0) -> torch.Tensor:
        rows = [getattr(example, name) for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return Batch(pad("ids"), pad("answers"), pad("features"), pad("last_hidden"), pad("argmax", -1))


def choose_vocabulary(mass: torch.Tensor, size: int, always: list[int]) -> torch.Tensor:
    """The `size` target ids of the largest summed probability `[vocab]`, ascending int64, with `always` among them."""
    ranked = mass.clone()
    ranked[always] = float("inf")
    return ranked.topk(min(size, len(mass))).indices.sort().values


def feature_scale(cache: FeatureCache, indices: list[int], boundaries: int = 3, sample: int = 64) -> torch.Tensor:
    """Factors, float32 `[boundaries * hidden]`, that bring all features to one level: the deepest boundary's median.

    Residual streams have a few dimensions hundreds of times larger than the rest; scaled, one learning rate suits all.
    The level is what the target's last layer, from which a fresh head is made, is used to. Root mean squares are
    taken over the answers of `sample` examples: the first token alone may carry states that dwarf all others.
    """
    total, count = torch.zeros(()), 0
    for index in indices[:sample]:
        example = cache[index]
        rows = example.features[example.answers].float()
        total, count = total + rows.square().sum(0), count + len(rows)
    size = (total / max(count, 1)).clamp(min=1e-12).sqrt()
    return size[-len(size) // boundaries :].median() / size


def split(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and `held_out` ones (a tenth at most), drawn by `seed`."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    held_out = min(held_out, count // 10)
    return sorted(order[held_out:]), sorted(order[:held_out])


def bucketed(cache: FeatureCache, indices: list[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """One epoch's batches of at most `batch_tokens` padded tokens, of similar lengths, in an order drawn by `seed`."""
    rng = random.Random(seed)
    shuffled = indices[:]
    rng.shuffle(shuffled)
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), 1024):
        window = sorted(shuffled[start : start + 1024], key=cache.length)
        batch: list[int] = []
        for index in window:
            if batch and cache.length(index) * (len(batch) + 1) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    rng.shuffle(batches)
    return batches
