"""From prompts to a dataset on disk: filters, interviews, shards, and at the end the dataset with its card.

What is on disk decides what is still to do, so that the same call goes on after any interruption.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .conversations import Conversation, load_conversations
from .filters import FilterRules, Gate
from .interview import Plan
from .interviewer import Interviewer, Numbered, ServerInterviewer
from .openings import DIGEST
from .overlap import Overlap
from .sources import Prompt, read_prompts
from .store import check_free, save_dataset
from .tally import Tally
from .work import SHARD_SIZE, WorkFolder, write_shards

# Makes the interviewer of a gate, the prompts still to be asked (None: the target makes them up), the next number.
Opened = Callable[[Gate, "Numbered | None", int], "Interviewer | ServerInterviewer"]
Progress = Callable[[int, int], None]  # answer tokens, prompts done with


class Prompts:
    """The prompts of several sources, one after the other; `count` of them, `digest` of all their texts.

    Raises:
        OSError, ValueError: a source is not there, or holds none.
    """

    def __init__(self, sources: list[str], split: str = "train") -> None:
        self.sources, self.split, self.tally = sources, split, Tally()
        self.count, digest = 0, hashlib.sha256()
        for prompt in self._read(self.tally):
            self.count += 1
            digest.update(json.dumps([prompt.system, *prompt.turns]).encode())
        self.digest = digest.hexdigest()[:16]

    def __iter__(self) -> Iterator[Prompt]:
        return self._read(None)

    def _read(self, tally: Tally | None) -> Iterator[Prompt]:
        for source in self.sources:
            yield from read_prompts(source, self.split, tally)


@dataclass(frozen=True)
class Job:
    """What a dataset is made of. `facts` say what the answers depend on beyond plan and rules (target, template)."""

    plan: Plan
    rules: FilterRules
    facts: dict[str, Any]
    prompts: Prompts | None = None
    exclude: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """For the card: what follows from what."""
        plan, rules = asdict(self.plan), asdict(self.rules)
        if self.prompts is not None:
            plan = {name: value for name, value in plan.items() if name not in _SELF_PROMPTING}
        told = {**self.facts, **plan, **{f"filter: {name}": value for name, value in rules.items()}}
        if self.prompts is None:
            told["openings"] = DIGEST
        else:
            told |= {"prompts": self.prompts.sources, "split": self.prompts.split, "digest": self.prompts.digest}
        if self.exclude:
            told["excluded questions"] = list(self.exclude)
        return told

    def settings(self) -> dict[str, Any]:
        """What an unfinished dataset must have in common with a run that goes on with it."""
        return {name: value for name, value in self.described().items() if name != "answer_tokens"}


_SELF_PROMPTING = ("two_turn_share", "custom_system_share", "prompt_temperatures", "prompt_top_p", "max_passage")


def write_dataset(
    out: Path,
    job: Job,
    opened: Opened,
    *,
    held_out: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_size: int = SHARD_SIZE,
) -> Tally:
    """Write the dataset of `job` to `out`, or go on with it; returns what every step kept and dropped.

    Args:
        opened: makes the interviewer.
        held_out, overwrite: see [`save_dataset`].
        progress: called with answer tokens and prompts done with.

    Raises:
        ValueError: settings differ from those of the unfinished dataset there, or nothing passes the filters.
        OSError: something cannot be read or written, or `out` is taken.
    """
    out = out.absolute()
    check_free(out, overwrite)
    folder = out.with_name(f".{out.name}-work")
    exclude = Overlap.from_questions(job.exclude) if job.exclude else None
    with WorkFolder(folder, job.settings()) as work:
        gate = Gate(job.rules, Tally(), exclude)
        waiting = None if job.prompts is None else work.remaining(job.prompts, gate)
        interviewer = opened(gate, waiting, work.begun)
        for conversation in work.conversations():
            interviewer.remember(conversation)
        write_shards(interviewer, work, progress, shard_size)
        tally = Tally()
        if job.prompts is not None:
            tally.merge(job.prompts.tally)
        tally.merge(work.tally)
        save_dataset(work.conversations(), out, tally, job.described(), held_out, job.plan.seed, overwrite)
    shutil.rmtree(folder)
    return tally


def convert_shards(
    shards: Path,
    out: Path,
    target: str | None = None,
    exclude: tuple[str, ...] = (),
    decode: Callable[[list[int]], str] | None = None,
    *,
    held_out: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Tally:
    """A dataset of conversations that are there as shards. Returns what was kept.

    Args:
        target: only named, on the card.
        exclude: evaluation questions; conversations that share words with them are left out.
        decode: gives the text of ids, where conversations have no other. A short question, which counts as a whole
            turn only, is not found in it.

    Raises:
        ValueError: they are no conversations, or `exclude` needs words and there is no `decode`.
        OSError: there are none, or `out` is taken.
    """
    out, tally = out.absolute(), Tally()
    check_free(out, overwrite)
    kept = _with_answers(load_conversations(shards), tally)  # counted by the time the card is written
    facts: dict[str, Any] = {} if target is None else {"target": target}
    facts |= {"shards": str(shards), "seed": seed}
    if exclude:
        kept = _unasked(kept, Overlap.from_questions(exclude), decode, tally)
        facts["excluded questions"] = list(exclude)
    save_dataset(kept, out, tally, facts, held_out, seed, overwrite)
    return tally


def _with_answers(conversations: Iterator[Conversation], tally: Tally) -> Iterator[Conversation]:
    for conversation in conversations:
        if conversation.answer_tokens:
            tally.kept("conversations")
            yield conversation
        else:
            tally.dropped("conversations", "no answer")


def _unasked(
    conversations: Iterator[Conversation],
    exclude: Overlap,
    decode: Callable[[list[int]], str] | None,
    tally: Tally,
) -> Iterator[Conversation]:
    for conversation in conversations:
        file = _question_in(conversation, exclude, decode)
        if file is None:
            tally.kept("excluded questions")
            yield conversation
        else:
            tally.dropped("excluded questions", "of an evaluation file")
            tally.noted("excluded questions", f"sharing words with {file}")


def _question_in(
    conversation: Conversation, exclude: Overlap, decode: Callable[[list[int]], str] | None
) -> str | None:
    """The file of a question that a conversation shares words with, by its messages where it has any."""
    if conversation.messages:
        said = ((message["content"], message["role"] == "user") for message in conversation.messages)
        return next(filter(None, (exclude.hit(text, turn) for text, turn in said)), None)
    if decode is None:
        raise ValueError(
            "--exclude compares words, and these shards hold token ids alone: give --target too, whose tokenizer "
            "reads them."
        )
    return exclude.hit(decode(conversation.ids), turn=False)
