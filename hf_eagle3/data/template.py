"""A chat template and what of its text the target itself writes: prompts as inference renders them, and the loss mask.

The mask comes from the template's own `{% generation %}` marks where it has any; otherwise from rendering a chat with
and without each answer. Either way every token is checked: the prompt's ids must be those of inference, and the marked
ones must read as the answer and its stop token. Knows nothing of targets, heads or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Messages = Sequence[dict[str, str]]
_SENTINEL = "\u241eNEXT\u241e"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What templates put before an answer that was written without thinking; the target never generated it.
_EMPTY_THINKING = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass
class Rendered:
    """One conversation as token ids; `mask` says which of them the target generated: answers and their stop tokens."""

    ids: list[int]
    mask: list[bool]


class TemplateError(ValueError):
    """A chat template of which no loss mask can be made."""


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """A chat with the header of the next answer, exactly as inference renders it."""
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    return [int(token) for token in ids]


def before_user(tokenizer: Any, messages: Messages) -> list[int]:
    """Everything up to where the next user's text begins; `messages` may be empty, a system message, or a chat so far.

    Raises:
        TemplateError: if the template does not repeat the user's text once, as it is.
    """
    text = _text(tokenizer, [*messages, {"role": "user", "content": _SENTINEL}])
    if text.count(_SENTINEL) != 1:
        raise TemplateError(
            "The chat template does not repeat a user's turn as it is given, so the target cannot write one: give "
            "prompts instead (--prompts)."
        )
    return _tokens(tokenizer, text.split(_SENTINEL)[0])


def render(tokenizer: Any, messages: Messages, stop_ids: Sequence[int], finished: bool = True) -> list[Rendered]:
    """A chat whose answers are texts, as ids and mask.

    Args:
        stop_ids: the tokens that end a turn; the first of them that the template writes after an answer is its last
            supervised token.
        finished: whether the last answer was ended by the target. If not, nothing after its text is kept.

    Returns:
        One conversation, or one for each answer where the template rewrites earlier turns (drops their thinking, say):
        each then ends with its own answer, the only one supervised.

    Raises:
        TemplateError: if neither marks nor renderings tell the answers apart.
        ValueError: if the chat has no answer.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError("The conversation has no answer: nothing in it can be learnt.")
    chats = [list(messages[: turns[-1] + 1])]
    if len(turns) > 1 and not _stable(tokenizer, chats[0], turns):
        chats = [list(messages[: turn + 1]) for turn in turns]
    last_only = len(chats) > 1
    rendered = []
    for chat in chats:
        answers = [len(chat) - 1] if last_only else turns
        cut = not finished and chat is chats[-1]
        rendered.append(_rendered(tokenizer, chat, answers, set(stop_ids), cut))
    return rendered


def _rendered(tokenizer: Any, chat: Messages, answers: list[int], stop_ids: set[int], cut: bool) -> Rendered:
    text = _text(tokenizer, chat)
    ids, offsets = _tokens_at(tokenizer, text)
    spans = _marked(tokenizer, chat, answers, text) or [_derived(tokenizer, chat, turn, text) for turn in answers]
    mask = [False] * len(ids)
    length = len(ids)
    for number, (turn, (first, last)) in enumerate(zip(answers, spans, strict=True)):
        tokens = [j for j, (start, end) in enumerate(offsets) if start < last and end > first and end > start]
        _check_prompt(tokenizer, chat[:turn], ids, tokens, offsets, (first, last))
        for token in tokens:
            mask[token] = True
        after = tokens[-1] + 1
        if cut and number == len(answers) - 1:
            length = after
        elif after < len(ids) and ids[tokens[-1]] not in stop_ids:
            stop = next((j for j in range(after, len(ids)) if ids[j] in stop_ids), None)
            if stop is not None and not tokenizer.decode(ids[after:stop]).strip():
                for token in range(after, stop + 1):
                    mask[token] = True
    return Rendered(ids[:length], mask[:length])


def _derived(tokenizer: Any, chat: Messages, turn: int, text: str) -> tuple[int, int]:
    """Where an answer stands in the rendered chat: after what the template writes when it waits for it."""
    header = _text(tokenizer, chat[:turn], answering=True)
    content = chat[turn]["content"].strip()
    waited = text.startswith(header)
    # A generation prompt may hold more than a finished turn does (an opened thought, a note): use the common part.
    first = len(header) if waited else _common(header, text)
    thinking = _EMPTY_THINKING.match(text, first)
    if thinking and not _EMPTY_THINKING.match(content):
        first = thinking.end()
    start = text.find(content, first)
    if not content or start < 0 or text[first:start].strip():
        raise _hopeless(tokenizer)
    # White space after the header is the target's own: in "[/INST] Yes" it generates " Yes".
    return first if waited else start, start + len(content)


def _marked(tokenizer: Any, chat: Messages, answers: list[int], text: str) -> list[tuple[int, int]] | None:
    """The same from the template's `{% generation %}` marks; None where it has none."""
    if not _GENERATION.search(_template(tokenizer)):
        return None
    encoded = tokenizer.apply_chat_template(list(chat), return_dict=True, return_assistant_tokens_mask=True)
    mask = encoded["assistant_masks"]
    _, offsets = _tokens_at(tokenizer, text)
    runs: list[list[int]] = []
    for number, marked in enumerate(mask):
        if marked and runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        elif marked:
            runs.append([number])
    assistants = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
    if len(runs) != len(assistants):
        raise _hopeless(tokenizer)
    spans = []
    for turn, run in zip(assistants, runs, strict=True):
        first, last = offsets[run[0]][0], offsets[run[-1]][1]
        thinking = _EMPTY_THINKING.match(text, first, last)
        if thinking and not _EMPTY_THINKING.match(chat[turn]["content"]):
            first = thinking.end()
        if turn in answers:
            spans.append((first, last))
    return spans


def _check_prompt(
    tokenizer: Any,
    before: Messages,
    ids: list[int],
    tokens: list[int],
    offsets: list[tuple[int, int]],
    span: tuple[int, int],
) -> None:
    """Token by token: no token of the answer holds a piece of what is before or after it, and what comes before is
    what inference would be given (as far as a generation prompt does not add to it)."""
    if not tokens or offsets[tokens[0]][0] < span[0] or offsets[tokens[-1]][1] > span[1]:
        raise TemplateError(
            "A token holds both a piece of an answer and of the chat template around it, so it is no token that the "
            "target would generate there: put a special token or a line break between header and content in the "
            "template, or mark the content with {% generation %} ... {% endgeneration %}."
        )
    prompt = prompt_ids(tokenizer, before)
    same = _common(prompt, ids)
    if same < min(len(prompt), tokens[0]):
        raise TemplateError(
            f"The template renders a chat with its answer otherwise than the prompt before it: they part at token "
            f"{same} ({tokenizer.decode(ids[same : same + 4])!r}), so the answer would be learnt after a prompt that "
            "inference never sees; let the template write earlier turns alike in both."
        )


def _stable(tokenizer: Any, chat: Messages, turns: list[int]) -> bool:
    """Whether each answer's rendering is still there, unchanged, when the chat has gone on."""
    whole = _text(tokenizer, chat)
    for turn in turns[:-1]:
        part = _text(tokenizer, chat[: turn + 1])
        if not whole.startswith(part.rstrip()):
            return False
        if _common(_text(tokenizer, chat[:turn], answering=True), whole) < len(
            _text(tokenizer, chat[:turn], answering=True).rstrip()
        ):
            return False
    return True


def _hopeless(tokenizer: Any) -> TemplateError:
    return TemplateError(
        f"The chat template of {tokenizer.name_or_path or type(tokenizer).__name__} does not show which text is "
        "the assistant's: write {% generation %}{{ message['content'] }}{% endgeneration %} around the assistant's "
        "content in the template, its stop token included."
    )


def _template(tokenizer: Any) -> str:
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if not template:
        raise TemplateError(
            f"The tokenizer {tokenizer.name_or_path} has no chat template: set tokenizer.chat_template, or take the "
            "instruct version of the model."
        )
    return str(template)


def _text(tokenizer: Any, messages: Messages, answering: bool = False) -> str:
    _template(tokenizer)
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answering))


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _tokens_at(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids with the characters that each of them covers."""
    if not tokenizer.is_fast:
        raise TemplateError(
            f"{type(tokenizer).__name__} does not tell which characters a token covers: use its fast version."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [int(token) for token in encoded["input_ids"]], [tuple(pair) for pair in encoded["offset_mapping"]]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many leading items agree."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


__all__ = ["Rendered", "TemplateError", "before_user", "prompt_ids", "render"]
