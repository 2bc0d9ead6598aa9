"""Streamers: the same text as from plain `generate`, token by token, and nothing past a stop."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from helpers.agreement import learn_text
from helpers.targets import letters, prompt
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

import hf_eagle3


class Recorder(BaseStreamer):
    """Remembers each `put`, with the shape of what came, and each `end`."""

    def __init__(self) -> None:
        self.puts: list[tuple[tuple[int, ...], list[int]]] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        assert value.device.type == "cpu"
        self.puts.append((tuple(value.shape), value.flatten().tolist()))

    def end(self) -> None:
        self.ends += 1


@pytest.fixture
def stops(target, head) -> list[dict[str, Any]]:
    """Three ways to end, each in the middle of an accepted run; the oracle knows how the text would go on."""
    learn_text(target, head, {"max_new_tokens": 30}, input_ids=prompt())
    new = target.generate(prompt(), max_new_tokens=30)[0, 9:].tolist()
    tokenizer = letters()
    string = {"stop_strings": tokenizer.decode(new[7:9]), "tokenizer": tokenizer}
    return [options | {"max_new_tokens": 30} for options in ({}, {"eos_token_id": new[12]}, string)] + [
        {"max_new_tokens": 11}
    ]


def test_each_put_is_plain_generates(target, head, stops) -> None:
    for options in stops:
        plain, drafted = Recorder(), Recorder()
        target.generate(prompt(), **options, streamer=plain)
        target.generate(prompt(), **options, streamer=drafted, assistant_model=head)
        assert drafted.puts == plain.puts
        assert drafted.ends == plain.ends == 1


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_streamer(target, head, stops, skip_prompt: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for options in stops:
        texts = []
        for more in ({}, {"assistant_model": head}):
            streamer = TextStreamer(letters(), skip_prompt=skip_prompt)
            out = target.generate(prompt(), **options, **more, streamer=streamer)
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1]
        assert texts[1] == letters().decode(out[0, 9 if skip_prompt else 0 :]) + "\n"


def test_text_iterator_streamer(target, head, stops) -> None:
    for options in stops:
        pieces = []
        for more in ({}, {"assistant_model": head}):
            streamer = TextIteratorStreamer(letters(), skip_prompt=True, timeout=60)
            call = {"input_ids": prompt(), **options, **more, "streamer": streamer}
            thread = threading.Thread(target=target.generate, kwargs=call)
            thread.start()
            pieces.append(list(streamer))
            thread.join()
        assert pieces[0] == pieces[1]
        assert len(pieces[1]) > 2


def test_a_streamer_through_the_other_door(target, head) -> None:
    """There `generate` drops its `streamer`, so it is bound to the callable: same puts, prompt included."""
    plain, drafted = Recorder(), Recorder()
    learn_text(target, head, {"max_new_tokens": 20}, input_ids=prompt())
    target.generate(prompt(), max_new_tokens=20, streamer=plain)
    target.generate(prompt(), max_new_tokens=20, custom_generate=hf_eagle3.drafting_with(head, streamer=drafted))
    assert drafted.puts == plain.puts
    assert drafted.ends == 1


def test_tokens_come_as_they_are_accepted(target, head) -> None:
    """A streamer is served while the text is being written, not at its end."""
    learn_text(target, head, {"max_new_tokens": 20}, input_ids=prompt())

    class Impatient(Recorder):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            trees_so_far.append(len(head.records[-1].trees) if head.records else 0)

    trees_so_far: list[int] = []
    target.generate(prompt(), max_new_tokens=20, streamer=Impatient(), assistant_model=head)
    assert trees_so_far == sorted(trees_so_far)
    assert len(set(trees_so_far)) >= 4
    assert trees_so_far[:2] == [0, 0], "the prompt and the first token come before any tree"
