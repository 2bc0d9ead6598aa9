"""The target's states over stored conversations, computed once and kept on disk, so that training never runs it.

A shard holds, per token, the captured boundaries and the last hidden state (after the final norm) in the target's
dtype, and the target's argmax; and the probability mass of each token over the answers, from which a draft vocabulary
is chosen. Full logits are never stored: they are one product away from the last hidden state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from .conversations import Conversation, load_conversations, write_atomically


@dataclass
class Example:
    """One conversation ready for training: all tensors are over its `tokens`.

    `ids` int64; `answers` bool; `features [tokens, boundaries * hidden]`; `last_hidden [tokens, hidden]`; `argmax`
    int64 (the target's best next token, -1 where the next token is not an answer token).
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

    [`write`] makes a shard, [`captured`] says what to capture while the text is still being generated.
    Raises `ValueError` if the model's logits are not plainly its output embeddings times its last hidden state (a
    logit scale or soft cap would make every teacher distribution wrong).
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

    @property
    def captured(self) -> list[int]:
        """The boundaries to ask the model for: the head's, and the state after the final norm."""
        return [*self.boundaries, self.model.config.get_text_config().num_hidden_layers]

    @torch.inference_mode()
    def write(self, conversations: list[Conversation], path: Path) -> None:
        """One feature shard, in the order of `conversations`; states are computed for those that bring none."""
        missing = [conversation for conversation in conversations if conversation.states is None]
        missing.sort(key=lambda conversation: len(conversation.ids))
        while missing:
            count = max(1, self.batch_tokens // len(missing[-1].ids))
            self._fill_in(missing[-count:])
            del missing[-count:]
        states = torch.cat([nn.functional.pad(c.states, (0, 0, 0, 1)) for c in conversations if c.states is not None])
        features, last_hidden = states.tensor_split(
            [states.shape[-1] * len(self.boundaries) // len(self.captured)], -1
        )
        answers = torch.cat([conversation.answer_mask() for conversation in conversations])
        argmax, mass = self._best(last_hidden, predicting(answers))
        tensors = {
            "ids": torch.tensor([token for conversation in conversations for token in conversation.ids]).int(),
            "answers": answers,
            "lengths": torch.tensor([len(conversation.ids) for conversation in conversations]),
            "features": features.contiguous(),
            "last_hidden": last_hidden.contiguous(),
            "argmax": argmax,
            "mass": mass,
        }
        write_atomically(tensors, path, {"boundaries": str(self.boundaries)})

    def _fill_in(self, conversations: list[Conversation]) -> None:
        """Run the target over `conversations` (right-padded together) and give each its states."""
        device, rows = self.model.device, [torch.tensor(conversation.ids) for conversation in conversations]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        out = self.model.base_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=self.captured, use_cache=False
        )
        states = torch.cat([out.hidden_states[boundary] for boundary in self.captured], dim=-1).cpu()
        for conversation, row in zip(conversations, states, strict=True):
            conversation.states = row[: len(conversation.ids) - 1]

    def _best(self, last_hidden: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The target's argmax at `where` (-1 elsewhere) int32, and its summed probabilities `[vocab]` float32."""
        argmax = torch.full(where.shape, -1, dtype=torch.int32)
        mass = torch.zeros(self.model.config.get_text_config().vocab_size, dtype=torch.float32)
        best = []
        for chunk in last_hidden[where].split(512):
            logits = self.output(chunk.to(self.model.device))
            best.append(logits.argmax(-1).cpu())
            mass += logits.softmax(-1).sum(0, dtype=torch.float32).cpu()
        argmax[where] = torch.cat(best).int() if best else argmax[where]
        return argmax, mass


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
            extractor.write(list(load_conversations(file)), path)
        if progress is not None:
            progress(done + 1, len(files))


class FeatureCache:
    """All examples of a folder of feature shards, read lazily (the files are mapped, not loaded).

    `mass` is the summed probability of each target token over all answers, float32 `[vocab]`. Raises `OSError` when
    the folder has no shards, `ValueError` when they were made with other boundaries than the ones asked for.
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
