"""A chat template and what of its text the target itself writes: prompts as inference renders them, and the loss mask.

The mask comes from the template's own `{% generation %}` marks where it has any; otherwise from rendering a chat with
and without each answer. Either way every token is checked: the prompt's ids must be those of inference, and the marked
ones must read as the answer and its stop token. Marks that hold more (the header, an empty thought, a line break after
the stop token) are narrowed to that. Knows nothing of targets, heads or files.
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
    """A chat template that fails, or of which no loss mask can be made."""


@dataclass
class _Encoded:
    """A rendered chat: its text, the token ids of it, and which characters each of them covers."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """A chat with the header of the next answer, exactly as inference renders it.

    Raises:
        TemplateError: if the template takes no such chat.
    """
    ids = _applied(tokenizer, messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [int(token) for token in ids]


def chat_text(tokenizer: Any, messages: Messages, answering: bool = False) -> str:
    """A chat as text; with the header of the next answer if it is `answering`.

    Raises:
        TemplateError: if the template takes no such chat.
    """
    return str(_applied(tokenizer, messages, tokenize=False, add_generation_prompt=answering))


def before_user(tokenizer: Any, messages: Messages) -> list[int]:
    """Everything up to where the next user's text begins; `messages` may be empty, a system message, or a chat so far.

    Raises:
        TemplateError: if the template does not repeat the user's text once, as it is.
    """
    text = chat_text(tokenizer, [*messages, {"role": "user", "content": _SENTINEL}])
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
    encoded = _encoded(tokenizer, chat_text(tokenizer, chat))
    ids, offsets = encoded.ids, encoded.offsets
    mask = [False] * len(ids)
    length = len(ids)
    spans = _spans(tokenizer, chat, answers, encoded)
    for number, (turn, (first, last)) in enumerate(zip(answers, spans, strict=True)):
        tokens = [j for j, (start, end) in enumerate(offsets) if start < last and end > first and end > start]
        _check_prompt(tokenizer, chat[:turn], encoded, tokens, (first, last))
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


def _spans(tokenizer: Any, chat: Messages, answers: list[int], encoded: _Encoded) -> list[tuple[int, int]]:
    """Where the text of each of the `answers` stands, in characters; where the template has marks, inside of them."""
    assistants = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
    within = {turn: (0, len(encoded.text)) for turn in assistants}
    if _GENERATION.search(_template(tokenizer)):
        marks = _applied(tokenizer, chat, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
        runs = _runs(marks)
        if len(runs) != len(assistants):
            raise _hopeless(tokenizer)
        offsets = encoded.offsets
        within = {turn: (offsets[run[0]][0], offsets[run[-1]][1]) for turn, run in zip(assistants, runs, strict=True)}
    return [_span(tokenizer, chat, turn, encoded.text, within[turn]) for turn in answers]


def _span(tokenizer: Any, chat: Messages, turn: int, text: str, within: tuple[int, int]) -> tuple[int, int]:
    """Where an answer stands `within` a piece of the rendered chat: after what the target is given to begin it."""
    header, content = chat_text(tokenizer, chat[:turn], answering=True), chat[turn]["content"]
    # A generation prompt may hold more than a finished turn does (an opened thought, a note): use the common part.
    common = _common(header, text)
    first = max(within[0], common)
    # White space after the header is the target's own: in "[/INST] Yes" it generates " Yes".
    spaced = common == len(header) or first > common
    thinking = _EMPTY_THINKING.match(text, first)
    if thinking and not _EMPTY_THINKING.match(content):
        first = thinking.end()
    start = text.find(content.strip(), first, within[1])
    if not content.strip() or start < 0 or text[first:start].strip():
        raise _hopeless(tokenizer)
    last = start + len(content.strip())
    # So is what the template kept of the white space at the answer's end, which may be part of a token (".\n").
    return first if spaced else start, last + _common(content[len(content.rstrip()) :], text[last:])


def _runs(mask: Sequence[int]) -> list[list[int]]:
    """Stretches of marked tokens that touch."""
    runs: list[list[int]] = []
    for number, marked in enumerate(mask):
        if marked and runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        elif marked:
            runs.append([number])
    return runs


def _check_prompt(
    tokenizer: Any, before: Messages, encoded: _Encoded, tokens: list[int], span: tuple[int, int]
) -> None:
    """Token by token: no token of the answer holds a piece of what is before or after it, and what comes before is
    what inference would be given, but for an empty thought."""
    ids, offsets = encoded.ids, encoded.offsets
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
    added = tokenizer.decode(prompt[tokens[0] :])
    if added.strip() and not _EMPTY_THINKING.fullmatch(added):
        raise TemplateError(
            f"Where it waits for an answer the template writes {added!r}, with which no finished answer begins: the "
            "answer would be learnt after a prompt that inference never sees. Let the template write it in both, or "
            "let the answers be written in this process (without --server), which keeps their token ids."
        )


def _stable(tokenizer: Any, chat: Messages, turns: list[int]) -> bool:
    """Whether each answer's rendering is still there, unchanged, when the chat has gone on."""
    whole = chat_text(tokenizer, chat)
    for turn in turns[:-1]:
        header = chat_text(tokenizer, chat[:turn], answering=True)
        part = chat_text(tokenizer, chat[: turn + 1])
        if not whole.startswith(part.rstrip()) or not whole.startswith(header.rstrip()):
            return False
    return True


def _hopeless(tokenizer: Any) -> TemplateError:
    return TemplateError(
        f"The chat template of {_named(tokenizer)} does not show which text is "
        "the assistant's: write {% generation %}{{ message['content'] }}{% endgeneration %} around the assistant's "
        "content in the template, its stop token included."
    )


def _template(tokenizer: Any) -> str:
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if not template:
        raise TemplateError(
            f"The tokenizer {_named(tokenizer)} has no chat template: set tokenizer.chat_template, or take the "
            "instruct version of the model."
        )
    return str(template)


def _named(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def _applied(tokenizer: Any, messages: Messages, **options: Any) -> Any:
    """What `apply_chat_template` makes of a chat; here alone a template runs."""
    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:  # a template is a program of its own, which may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"The chat template of {_named(tokenizer)} fails on a chat: {type(error).__name__} "
            f"({' '.join(str(error).split())}) where the roles are {roles}; give chats that it takes, or correct it "
            "(tokenizer.chat_template)."
        ) from error


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _encoded(tokenizer: Any, text: str) -> _Encoded:
    if not tokenizer.is_fast:
        raise TemplateError(
            f"{type(tokenizer).__name__} does not tell which characters a token covers: use its fast version."
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [int(token) for token in found["input_ids"]]
    return _Encoded(text, ids, [tuple(pair) for pair in found["offset_mapping"]])


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many leading items agree."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


__all__ = ["Rendered", "TemplateError", "before_user", "chat_text", "prompt_ids", "render"]
