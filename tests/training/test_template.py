"""The loss mask: of templates that behave as the well-known ones do, checked token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_eagle3 import embedded
from hf_eagle3.data.interview import takes_system
from hf_eagle3.data.template import TemplateError, before_user, prompt_ids, render

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|bos|>", "<think>", "</think>", "[INST]", "[/INST]"]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_WITHOUT_STOP = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
# As SmolLM3's own: the marks hold the header, an empty thought and the line break after the stop token too.
WIDE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}"
)
WIDE_WHILE_THINKING = WIDE.replace("assistant\n<think>\n\n</think>\n' }}{% endif", "assistant\n' }}{% endif")
WIDE_WITH_MORE = WIDE.replace("</think>\n' + m['content']", "</think>\nHe said: ' + m['content']")
TRIMMED = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
BRACKETS = (
    "<|bos|>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
# Writes an empty thought before the last answer, drops every thought of earlier ones.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% if loop.last %}{% if '<think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    "{% else %}{{ m['content'].split('</think>')[-1] | trim }}{% endif %}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens a thought where an answer is to come, and shows none in a finished turn: as R1's distillations do.
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NOTED = CHATML.replace("assistant\n{% endif %}", "assistant (be brief)\n{% endif %}")
WIDE_NOTED = WIDE.replace(
    "'<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif", "'<|im_start|>assistant (brief)\n' }}{% endif"
)
FORGETFUL = "{{ messages | length }} turns so far{% if add_generation_prompt %}:{% endif %}"
CHAT = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi!\nHow are you?"},
    {"role": "user", "content": "Fine, and you?"},
    {"role": "assistant", "content": "Very well."},
]


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on a few sentences so that merges do happen; the end of a turn is also the padding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    text = ["Hello there", "Hi!\nHow are you?", "Fine, and you? Very well.", "system user assistant\n\n", "Be kind."]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(text * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = template
    return made


def stops(made: Any) -> list[int]:
    return made.convert_tokens_to_ids(["<|im_end|>", "<|end|>"])


def spans(made: Any, rendered: Any) -> list[str]:
    """The supervised stretches, as text."""
    found: list[list[int]] = []
    for number, (token, generated) in enumerate(zip(rendered.ids, rendered.mask, strict=True)):
        if generated and number and rendered.mask[number - 1]:
            found[-1].append(token)
        elif generated:
            found.append([token])
    return [made.decode(ids) for ids in found]


def line_breaking_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Splits as Llama 3 and Qwen do: a sign and the line break after it are one token, ".\\n"."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(["Very well.\n", "Hello there"] * 20, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_STOP, TRIMMED, WIDE, WIDE_WHILE_THINKING])
def test_answers_and_their_stop_token_are_supervised(template: str) -> None:
    made = tokenizer(template)
    (rendered,) = render(made, CHAT, stops(made))
    assert spans(made, rendered) == ["Hi!\nHow are you?<|im_end|>", "Very well.<|im_end|>"]
    assert made.decode(rendered.ids[-1:]) == "\n"  # what the template writes after the stop token is not
    assert not rendered.mask[-1]


def test_a_template_without_headers() -> None:
    made = tokenizer(BRACKETS)
    (rendered,) = render(made, CHAT, stops(made))
    assert [span.strip() for span in spans(made, rendered)] == ["Hi!\nHow are you?<|end|>", "Very well.<|end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED, WIDE])
def test_what_is_before_an_answer_is_what_inference_sees(template: str) -> None:
    made = tokenizer(template)
    (rendered,) = render(made, CHAT, stops(made))
    first = rendered.mask.index(True)
    assert rendered.ids[:first] == prompt_ids(made, CHAT[:1])
    second = len(prompt_ids(made, CHAT[:3]))
    assert rendered.ids[:second] == prompt_ids(made, CHAT[:3])
    assert rendered.mask[second]
    assert not rendered.mask[second - 1]


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_STOP, WIDE])
def test_an_answer_cut_short_has_no_stop_token(template: str) -> None:
    made = tokenizer(template)
    (rendered,) = render(made, CHAT, stops(made), finished=False)
    assert spans(made, rendered) == ["Hi!\nHow are you?<|im_end|>", "Very well."]
    assert rendered.mask[-1]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_STOP, WIDE, TRIMMED])
def test_an_answer_may_end_with_a_line_break(template: str, finished: bool) -> None:
    """It is the target's own, and part of a token, unless the template trims it away."""
    made = line_breaking_tokenizer(template)
    chat = [CHAT[0], {"role": "assistant", "content": "Very well.\n"}]
    (rendered,) = render(made, chat, stops(made), finished)
    written = "Very well." if template == TRIMMED else "Very well.\n"
    assert spans(made, rendered) == [written + "<|im_end|>" * finished]
    assert made.convert_tokens_to_ids([".\u010a"])[0] in rendered.ids or template == TRIMMED


def test_a_history_that_is_rewritten_becomes_a_conversation_for_each_answer() -> None:
    made = tokenizer(THINKING)
    chat = [CHAT[0], {"role": "assistant", "content": "<think>Hm.</think>\n\nHi!"}, CHAT[2], CHAT[3]]
    first, second = render(made, chat, stops(made))
    assert spans(made, first) == ["<think>Hm.</think>\n\nHi!<|im_end|>"]
    assert spans(made, second) == ["Very well.<|im_end|>"]  # the empty thought before it is not supervised
    assert "Hm." not in made.decode(second.ids)


@pytest.mark.parametrize("template", [FORGETFUL, NOTED, WIDE_NOTED, WIDE_WITH_MORE, OPENED])
def test_a_template_that_hides_its_answers_is_refused(template: str) -> None:
    made = tokenizer(template)
    with pytest.raises(TemplateError, match=r"generation|part at token|writes '<think>\\n'"):
        render(made, CHAT, stops(made))


def test_no_template_and_no_answer_are_refused() -> None:
    made = tokenizer(CHATML)
    with pytest.raises(ValueError, match="has no answer"):
        render(made, CHAT[:1], stops(made))
    made.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        render(made, CHAT, stops(made))


FAILING = {
    "{{ raise_exception('Roles must alternate') }}": "Roles must alternate",
    "{{ messages[0].nothing.at_all }}": "UndefinedError",
    "{% for m in messages %}": "TemplateSyntaxError",
    "{{ 1 + messages[0]['content'] }}": "TypeError",
}


@pytest.mark.parametrize("template", FAILING)
def test_a_template_that_fails_is_told_in_one_sentence(template: str) -> None:
    made = tokenizer(template)
    made.name_or_path = "some/model"
    calls = (
        lambda: render(made, CHAT, stops(made)),
        lambda: prompt_ids(made, CHAT[:1]),
        lambda: before_user(made, []),
    )
    for call in calls:
        with pytest.raises(TemplateError, match=FAILING[template]) as caught:
            call()
        told = str(caught.value)
        assert told.startswith("The chat template of some/model fails")
        assert "tokenizer.chat_template" in told
        assert "\n" not in told
    assert not takes_system(made)


def test_where_the_next_user_begins() -> None:
    made = tokenizer(CHATML)
    for chat in ([], [{"role": "system", "content": "Hello"}], CHAT[:2]):
        whole = made.apply_chat_template([*chat, {"role": "user", "content": "Fine"}], tokenize=False)
        assert whole.startswith(made.decode(before_user(made, chat)) + "Fine")
    with pytest.raises(TemplateError, match="does not repeat"):
        before_user(tokenizer(FORGETFUL), [])


def test_the_embedded_target() -> None:
    _, made = embedded.load(dtype=torch.bfloat16)
    (rendered,) = render(made, CHAT, [2])
    assert spans(made, rendered) == ["Hi!\nHow are you?<|im_end|>", "Very well.<|im_end|>"]
    assert rendered.ids[-2:] == [2, 198]
    assert rendered.mask[-2:] == [True, False]
