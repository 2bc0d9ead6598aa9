"""Conversations on the screen, token by token: what is supervised stands out.

In colour on a terminal, between [[ and ]] elsewhere. Knows nothing of how they were made.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

_STYLE = "bold green"


def inspect_dataset(rows: Any, tokenizer: Any, console: Console, count: int = 1, start: int = 0) -> None:
    """Print `count` conversations from number `start` on, each with its figures, then the totals of what was shown.

    Args:
        rows: a split of a data set, with `input_ids` and `loss_mask`.

    Raises:
        ValueError: if there is no conversation of that number.
    """
    if not 0 <= start < len(rows):
        raise ValueError(f"Conversation {start} was asked for, and there are {len(rows)}, numbered from 0.")
    shown = range(start, min(start + count, len(rows)))
    tokens = supervised = 0
    for number in shown:
        row = rows[number]
        ids, mask = row["input_ids"], row["loss_mask"]
        facts = [f"conversation {number}", f"{len(ids)} tokens", f"{sum(mask)} supervised"]
        facts += [f"{row['turns']} turns"] if row.get("turns") else []
        facts += [str(row["source"])] if row.get("source") else []
        console.rule(Text(" · ".join(facts)), style="dim")
        console.print(coloured(ids, mask, tokenizer, marks=not console.is_terminal), soft_wrap=True)
        tokens, supervised = tokens + len(ids), supervised + sum(mask)
    console.rule(style="dim")
    share = supervised / tokens if tokens else 0.0
    total = f"{len(shown)} conversations, {tokens} tokens, {supervised} supervised ({share:.0%})"
    console.print(total, highlight=False)


def coloured(ids: list[int], mask: list[bool], tokenizer: Any, marks: bool) -> Text:
    """The text of `ids`, its supervised stretches in colour, or between [[ and ]] if `marks`; special tokens are
    written out."""
    text, first = Text(), 0
    for number in range(1, len(ids) + 1):
        if number < len(ids) and mask[number] == mask[first]:
            continue
        stretch = str(tokenizer.decode(ids[first:number], skip_special_tokens=False))
        supervised = bool(mask[first])
        text.append(f"[[{stretch}]]" if supervised and marks else stretch, style=_STYLE if supervised else "")
        first = number
    return text
