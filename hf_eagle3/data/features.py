"""The target's states over stored conversations, computed once and kept on disk, so that training never runs it.

A shard holds, per token, the captured boundaries and the last hidden state (after the final norm) in the target's dtype,
and the target's argmax; and the probability mass of each token over the answers, from which a draft vocabulary is chosen.
Full logits are never stored: they are one product away from the last hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from .conversations import Conversation, load_conversations, write_atomically


@dataclass
class Example:
    """One conversation ready for training: all tensors are over its `tokens`.

    `ids` int64; `answers` bool; `features [tokens, boundaries * hidden]`; `last_hidden [tokens, hidden]`; `argmax` int64
    (the target's best next token, -1 where the next token is not an answer token).
    """

    ids: torch.Tensor
    answers: torch.Tensor
    features: torch.Tensor
    last_hidden: torch.Tensor
    argmax: torch.Tensor


def predicting(answers: torch.Tensor) -> torch.Tensor:
    """Positions whose NEXT token is an answer token, bool like `answers [..., tokens]`."""
    shifted = torch.zeros_like(answers)
    shifted[..., :-1] = answers[..., 1:]
    return shifted


class FeatureExtractor:
    """Runs `model` over conversations and keeps what training needs of it.

    Raises `ValueError` if the model's logits are not plainly its output embeddings times its last hidden state (a logit
    scale or soft cap would make every teacher distribution wrong).
    """

    def __init__(self, model: PreTrainedModel, boundaries: list[int], batch_tokens: int = 4096) -> None:
        self.model, self.boundaries, self.batch_tokens = model, boundaries, batch_tokens
        self._check_logits()

    @torch.inference_mode()
    def _check_logits(self) -> None:
        ids = torch.arange(3, 11, device=self.model.device)[None]
        expected = self.model(input_ids=ids).logits.float()
        found = self.output(self.model.base_model(input_ids=ids).last_hidden_state).float()
        if (found - expected).abs().max() > 0.02 * expected.abs().max():
            raise ValueError(
                f"The logits of {type(self.model).__name__} are not its output embeddings times its last hidden state "
                "(a scale or a soft cap?): its features cannot be cached yet."
            )

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        embeddings = self.model.get_output_embeddings()
        assert embeddings is not None
        logits: torch.Tensor = embeddings(hidden)
        return logits

    @torch.inference_mode()
    def __call__(self, conversations: list[Conversation]) -> dict[str, torch.Tensor]:
        """The tensors of one shard, in the order of `conversations`."""
        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i].ids))
        kept: dict[int, tuple[torch.Tensor, ...]] = {}
        mass = torch.zeros(self.model.config.get_text_config().vocab_size, dtype=torch.float32)
        while order:
            count = max(1, self.batch_tokens // len(conversations[order[-1]].ids))
            batch, order = order[-count:], order[:-count]
            for i, tensors in zip(batch, self._batch([conversations[i] for i in batch], mass), strict=True):
                kept[i] = tensors
        features, last_hidden, argmax = (torch.cat([kept[i][k] for i in range(len(kept))]) for k in range(3))
        lengths = torch.tensor([len(conversation.ids) for conversation in conversations])
        flat = torch.tensor([token for conversation in conversations for token in conversation.ids], dtype=torch.int32)
        answers = torch.cat([conversation.answer_mask() for conversation in conversations])
        return {
            "ids": flat, "answers": answers, "lengths": lengths, "features": features,
            "last_hidden": last_hidden, "argmax": argmax, "mass": mass,
        }  # fmt: skip

    def _batch(self, conversations: list[Conversation], mass: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        lengths = [len(conversation.ids) for conversation in conversations]
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        mask, answers = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for row, conversation in enumerate(conversations):
            ids[row, : lengths[row]] = torch.tensor(conversation.ids)
            mask[row, : lengths[row]] = 1
            answers[row, : lengths[row]] = conversation.answer_mask()
        device = self.model.device
        out = self.model.base_model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=self.boundaries, use_cache=False
        )
        features = torch.cat([out.hidden_states[boundary].cpu() for boundary in self.boundaries], dim=-1)
        argmax = torch.full(ids.shape, -1, dtype=torch.int32)
        where = predicting(answers)
        found = []
        for chunk in out.last_hidden_state[where.to(device)].split(512):
            logits = self.output(chunk).float()
            found.append(logits.argmax(-1).cpu())
            mass += logits.softmax(-1).sum(0).cpu()
        argmax[where] = torch.cat(found).int()
        hidden = out.last_hidden_state.cpu()
        return [
            (features[row, :n].contiguous(), hidden[row, :n].contiguous(), argmax[row, :n])
            for row, n in enumerate(lengths)
        ]


def extract(
    model: PreTrainedModel,
    conversations: Path,
    folder: Path,
    boundaries: list[int],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `features-N.safetensors` beside each `conversations-N.safetensors` that has none yet; resumable."""
    extractor = FeatureExtractor(model, boundaries)
    files = sorted(conversations.glob("conversations-*.safetensors"))
    for done, file in enumerate(files):
        path = folder / file.name.replace("conversations", "features")
        if not path.is_file():
            write_atomically(extractor(list(load_conversations(file))), path, {"boundaries": str(boundaries)})
        if progress is not None:
            progress(done + 1, len(files))


class FeatureCache:
    """All examples of a folder of feature shards, read lazily (the files are mapped, not loaded).

    `mass` is the summed probability of each target token over all answers, float32 `[vocab]`. Raises `OSError` when the
    folder has no shards, `ValueError` when they were made with other boundaries than the ones asked for.
    """

    def __init__(self, folder: Path, boundaries: list[int]) -> None:
        self.files = sorted(folder.glob("features-*.safetensors"))
        if not self.files:
            raise OSError(f"No feature shards under {folder}: extract them first (`hf-eagle3 train` does).")
        self.where: list[tuple[int, int, int]] = []
        self.shards = [safe_open(file, framework="pt") for file in self.files]
        self.mass = torch.zeros(0)
        for number, shard in enumerate(self.shards):
            made_with = (shard.metadata() or {}).get("boundaries")
            if made_with != str(boundaries):
                raise ValueError(
                    f"{self.files[number]} holds boundaries {made_with} and {boundaries} are wanted: "
                    "extract into another folder."
                )
            mass = shard.get_tensor("mass")
            self.mass = self.mass + mass if len(self.mass) else mass
            start = 0
            for length in shard.get_tensor("lengths").tolist():
                self.where.append((number, start, length))
                start += length

    def __len__(self) -> int:
        return len(self.where)

    def length(self, index: int) -> int:
        """Tokens of example `index`."""
        return self.where[index][2]

    def __getitem__(self, index: int) -> Example:
        number, start, length = self.where[index]
        ids, answers, features, last_hidden, argmax = (
            self.shards[number].get_slice(name)[start : start + length]
            for name in ("ids", "answers", "features", "last_hidden", "argmax")
        )
        return Example(ids.long(), answers, features, last_hidden, argmax.long())
