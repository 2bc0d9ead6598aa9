"""Whether tokenizer, chat template and target agree on the ids that begin and end things.

A pair whose answers never stop measures nothing, however good the head is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .findings import Finding, Severity
from .teacher import stop_ids

ANSWER = "Forty-two, exactly."  # put through the template, to see what follows it
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def chat_findings(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: PreTrainedConfig | None
) -> Iterator[Finding]:
    """What tokenizer and template say against what the target's configs say, and the head's special ids."""
    text: Any = target.config.get_text_config(decoder=True)
    if len(tokenizer) > text.vocab_size:
        yield Finding(
            "tokenizer",
            Severity.fault,
            f"The tokenizer has {len(tokenizer)} tokens but the target only {text.vocab_size}.",
            "Use the tokenizer that was saved with this target.",
        )
    yield from _template(target, tokenizer)
    differing = [] if head is None else [name for name in SPECIAL_IDS if _differs(head, text, name)]
    if differing:
        yield Finding(
            "special ids",
            Severity.note,
            f"Head and target differ in {', '.join(differing)}; drafting does not read the head's.",
        )


def _template(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """The template's end of an answer must be among the ids at which the target stops."""
    if not tokenizer.chat_template:
        seen = "The tokenizer has no chat template, so the trials run on bare prompts."
        yield Finding("chat template", Severity.note, seen, "A head for chats drafts worse there than in chats.")
        return
    try:
        ends = _ends_of_answer(tokenizer)
    except Exception as error:  # a template is a program of its author's, and may raise anything
        seen = f"The chat template does not take a question and its answer ({type(error).__name__})."
        yield Finding("chat template", Severity.note, seen)
        return
    stops = stop_ids(target)
    if ends and not set(ends) & set(stops):
        told = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)})" for token in ends)
        yield Finding(
            "chat template",
            Severity.warning,
            f"The template ends an answer with token {told}, but the target stops at {stops or 'nothing'}.",
            "Set `eos_token_id` in the target's generation_config.json.",
        )
    else:
        yield Finding("chat template", Severity.ok, f"Answers end with one of the target's stops, {stops}.")


def _ends_of_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the template puts after an answer."""
    chat = [{"role": "user", "content": "What is seven times six?"}, {"role": "assistant", "content": ANSWER}]
    whole: Any = tokenizer.apply_chat_template(chat, tokenize=False)
    _, _, after_answer = whole.rpartition(ANSWER)
    after = tokenizer(after_answer, add_special_tokens=False).input_ids
    return [token for token in dict.fromkeys(after) if token in tokenizer.all_special_ids]


def _differs(head: PreTrainedConfig, text: Any, name: str) -> bool:
    own, theirs = getattr(head, name, None), getattr(text, name, None)
    return own is not None and theirs is not None and own != theirs
