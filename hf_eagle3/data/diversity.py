"""How diverse the user turns and the answers of a data set are, in figures that sets of different sizes share.

Nearly every such figure falls or rises with the size of what it is counted on, so each is counted on a sample of a
fixed size. The sample is drawn by the hash of the texts: the same texts in any order give the same figures. Knows
nothing of how the texts were made.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .conversations import Conversation, load_conversations, shard_files
from .duplicates import Duplicates
from .store import load_dataset
from .words import words_of

# What English sentences are held together by: which of them occur says little of what is spoken of.
_FUNCTION_WORDS = frozenset(
    "a about after all also am an and any are as at be because been before being both but by can could did do does "
    "don each every for from get give had has have he her here him his how i if in into is it its just ll like make "
    "many may me more most much my no not of on one only or other our out over own re s same shall she should so some "
    "such t than that the their them then there these they this those to too two under up us use ve very was we were "
    "what when where which while who whom whose why will with would you your".split()
)


@dataclass(frozen=True)
class Sample:
    """How much is counted on; a smaller set is counted whole, and then compares with none that is larger.

    Args:
        texts: user turns, and answers, among which likenesses are counted.
        words: of these, for what is counted of words.
        head: the first words of a text that count, so that a few long passages do not make up the sample.
        answer_tokens: on which token types are counted.
        near: the similarity, as of [`Duplicates`], from which a text counts as nearly the same as another.

    Raises:
        ValueError: if one of the sizes is no positive number.
    """

    texts: int = 1000
    words: int = 8000
    head: int = 40
    answer_tokens: int = 20_000
    near: float = 0.5

    def __post_init__(self) -> None:
        for name in ("texts", "words", "head", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"A sample of {getattr(self, name)} {name} shows nothing: give at least 1.")


def measure(conversations: Iterable[Conversation], sample: Sample | None = None) -> dict[str, Any]:
    """The figures of a data set, as JSON values.

    `conversations` and `user_turns` are counts, `kinds` the share of conversations by source (without the line of a
    file), `turns` and `answers` what [`of_texts`] says of either, `token_types` how many different ids the first
    `token_sample` answer tokens hold. `answers` and `token_types` are None where there are no answers.

    Raises:
        ValueError: if there are no user turns: no conversations, or ones of token ids alone.
        ImportError: if datasketch, which finds near duplicates, is not installed.
    """
    sample = sample or Sample()
    whole = list(_whole(conversations))
    turns = [text for conversation in whole for text in _said(conversation, "user")]
    if not turns:
        raise ValueError(
            f"{len(whole)} conversations were given, and no text of a user turn with them: name a data set or shards "
            "whose messages are kept, as `hf-eagle3 data write` keeps them."
        )
    answers = [text for conversation in whole for text in _said(conversation, "assistant")]
    ids = _answer_ids(whole, sample.answer_tokens)
    kinds = Counter(_kind(conversation) for conversation in whole)
    return {
        "conversations": len(whole),
        "user_turns": len(turns),
        "sample": asdict(sample),
        "turns": of_texts(turns, sample),
        "answers": of_texts(answers, sample) if answers else None,
        "token_sample": len(ids),
        "token_types": len(set(ids)) if ids else None,
        "kinds": {kind: count / len(whole) for kind, count in sorted(kinds.items(), key=lambda item: -item[1])},
    }


def of_texts(texts: Sequence[str], sample: Sample) -> dict[str, float]:
    """Figures of a sample of `texts`, which are some.

    - `texts`, `words`: the size of the sample; `mean_words` of a text, all of its words counted.
    - `distinct_1`, `_2`, `_3`: different n-grams as a share of all; none crosses from one text to the next.
    - `near_duplicates`: the share of texts that an earlier one is the same as, or nearly.
    - `shared_3_words`, `shared_5_words`: the share of texts that begin with the same words as another.
    - `openings`: the effective number (exponential of the entropy) of first three words; `openings_entropy` in nats.
    - `content_words`, `content_words_entropy`: the same for words other than numbers and English function words.
    - `compression`: bytes of the sampled words by those that zlib makes of them; redundant texts have more.
    """
    drawn = sorted(texts, key=_digest)[: sample.texts]
    split = [words_of(text) for text in drawn]
    heads = list(_cut((words[: sample.head] for words in split), sample.words))
    openings = Counter(tuple(words[:3]) for words in split)
    content = Counter(
        word for words in heads for word in words if word not in _FUNCTION_WORDS and not word.isdecimal()
    )
    joined = "\n".join(" ".join(words) for words in heads).encode()
    seen = Duplicates(near=sample.near)
    return {
        "texts": len(drawn),
        "words": sum(map(len, heads)),
        "mean_words": sum(map(len, split)) / len(split),
        **{f"distinct_{n}": _distinct(heads, n) for n in (1, 2, 3)},
        "near_duplicates": sum(seen.seen(text) is not None for text in drawn) / len(drawn),
        **{f"shared_{n}_words": _shared(split, n) for n in (3, 5)},
        "openings_entropy": entropy(openings),
        "openings": math.exp(entropy(openings)),
        "content_words_entropy": entropy(content),
        "content_words": math.exp(entropy(content)),
        "compression": len(joined) / len(zlib.compress(joined, 9)) if joined else 1.0,
    }


def entropy(counts: Counter[Any]) -> float:
    """Of the shares that the counts are, in nats; 0 for none."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else 0.0


def read(data: str) -> Iterator[Conversation]:
    """The conversations of a data set, of all its splits, or of shards as `--from-shards` takes them.

    Raises:
        OSError, ValueError: there are none, or what is there is neither.
    """
    path = Path(data)
    if path.is_file() or (path.is_dir() and shard_files(path)):
        yield from load_conversations(path)
        return
    for split in load_dataset(data).values():
        for row in split:
            about = {"source": row.get("source")}
            yield Conversation(row["input_ids"], row["loss_mask"], row.get("messages") or [], about)


def table(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of name, user turns and answers, to be printed."""
    turns, answers = figures["turns"], figures["answers"]
    rows = [("in all", f"{figures['user_turns']:,}", "")]
    for name, (label, form) in _ROWS.items():
        rows.append((label, format(turns[name], form), format(answers[name], form) if answers else "-"))
    if figures["token_types"] is not None:
        label = f"token types in {figures['token_sample']:,} answer tokens"
        rows.append((label, "", f"{figures['token_types']:,}"))
    return rows


_ROWS = {
    "texts": ("sampled", ",d"), "words": ("words that are counted", ",d"), "mean_words": ("mean words", ".1f"),
    "distinct_1": ("distinct-1", ".3f"), "distinct_2": ("distinct-2", ".3f"), "distinct_3": ("distinct-3", ".3f"),
    "near_duplicates": ("near duplicates", ".1%"), "shared_3_words": ("first 3 words shared", ".1%"),
    "shared_5_words": ("first 5 words shared", ".1%"), "openings": ("effective number of openings", ",.1f"),
    "content_words": ("effective number of content words", ",.1f"), "compression": ("compression", ".2f"),
}  # fmt: skip


def _whole(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """Each conversation once, where a template that rewrites earlier turns made an example of each of its answers:
    the last one holds all that was said, and the tokens of the others are answers as well."""
    before: Conversation | None = None
    for conversation in conversations:
        if before is not None and before.messages and _goes_on(before, conversation):
            ids, mask = before.ids + conversation.ids, before.mask + conversation.mask
            before = Conversation(ids, mask, conversation.messages, conversation.about)
            continue
        if before is not None:
            yield before
        before = conversation
    if before is not None:
        yield before


def _kind(conversation: Conversation) -> str:
    source = conversation.about.get("source") or conversation.about.get("kind") or "not known"
    return re.sub(r":\d+$", "", str(source))


def _goes_on(before: Conversation, after: Conversation) -> bool:
    known = len(before.messages)
    return known < len(after.messages) and after.messages[:known] == before.messages


def _said(conversation: Conversation, role: str) -> Iterator[str]:
    return (str(message["content"]) for message in conversation.messages if message["role"] == role)


def _answer_ids(conversations: Sequence[Conversation], count: int) -> list[int]:
    drawn = sorted(conversations, key=lambda conversation: _digest("\n".join(_said(conversation, "user"))))
    answers = ([i for i, own in zip(row.ids, row.mask, strict=True) if own] for row in drawn)
    return [token for answer in _cut(answers, count) for token in answer]


def _cut(rows: Iterable[list[Any]], count: int) -> Iterator[list[Any]]:
    """The rows until they hold `count` items, the last one cut."""
    for row in rows:
        if count <= 0:
            return
        yield row[:count]
        count -= len(row)


def _distinct(rows: Sequence[Sequence[str]], n: int) -> float:
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _shared(rows: Sequence[Sequence[str]], n: int) -> float:
    beginnings = Counter(tuple(row[:n]) for row in rows)
    return sum(count for count in beginnings.values() if count > 1) / len(rows)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
