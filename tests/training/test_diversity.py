"""The figures of diversity: worked out by hand, of sets that are small enough for it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hf_eagle3.data import command
from hf_eagle3.data.conversations import Conversation, save_conversations
from hf_eagle3.data.diversity import Sample, measure, of_texts, read, table
from hf_eagle3.data.store import save_dataset
from hf_eagle3.data.tally import Tally


def said(user: str, answer: str = "", ids: tuple[int, ...] = (), source: str = "self-prompting/facts") -> Conversation:
    messages = [{"role": "user", "content": user}] + [{"role": "assistant", "content": answer}] * bool(answer)
    return Conversation([0, *ids], [False] + [True] * len(ids), messages, {"source": source})


def test_ngrams_openings_and_beginnings() -> None:
    """Ten words, six of them different; eight pairs in two turns, of which one comes twice."""
    found = of_texts(["Why do red bees dance?", "Why do red ants red!"], Sample())
    assert (found["texts"], found["words"], found["mean_words"]) == (2, 10, 5.0)
    assert found["distinct_1"] == 6 / 10  # why do red bees dance ants
    assert found["distinct_2"] == 6 / 8  # why-do, do-red twice
    assert found["distinct_3"] == 5 / 6  # why-do-red twice
    assert (found["shared_3_words"], found["shared_5_words"]) == (1.0, 0.0)
    assert found["openings"] == pytest.approx(1.0)
    # Content: red three times, bees, dance, ants once each.
    expected = -(3 / 6 * math.log(3 / 6) + 3 * (1 / 6) * math.log(1 / 6))
    assert found["content_words_entropy"] == pytest.approx(expected)
    assert found["content_words"] == pytest.approx(math.exp(expected))


def test_even_openings_count_as_many_as_they_are() -> None:
    texts = [f"{first} two three {n}" for first in ("alpha", "beta", "gamma", "delta") for n in (1, 2)]
    found = of_texts(texts, Sample())
    assert found["openings"] == pytest.approx(4.0)
    assert found["openings_entropy"] == pytest.approx(math.log(4))
    assert (found["shared_3_words"], found["shared_5_words"]) == (1.0, 0.0)


def test_near_duplicates_count_from_the_second_one_on() -> None:
    """Fifteen triples of which one differs are nearly the same; half of the triples is where it begins."""
    words = [f"w{i}" for i in range(17)]
    near, half = [*words[:16], "other"], [*words[:8], *(f"v{i}" for i in range(9))]
    texts = [" ".join(words), " ".join(near), " ".join(half), "nothing of all that"]
    assert of_texts(texts, Sample())["near_duplicates"] == 1 / 4
    assert of_texts([*texts, texts[-1].upper()], Sample())["near_duplicates"] == 2 / 5
    assert of_texts(texts, Sample(near=0.99))["near_duplicates"] == 0


def test_redundant_texts_compress_better() -> None:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    noise = ["".join(rng.choices(letters, k=9)) for _ in range(400)]
    varied = of_texts([" ".join(noise[i : i + 20]) for i in range(0, 400, 20)], Sample())["compression"]
    again = of_texts([" ".join(noise[:20])] * 20, Sample())["compression"]
    assert 1.2 < varied < 26 / 10  # nearly log2(26) bits a letter are there, and 8 are written
    assert again > 8 * varied


def test_a_sample_of_fixed_size_whatever_the_order() -> None:
    texts = [f"topic{i} question{i % 7} word{i % 3}" for i in range(60)]
    sample = Sample(texts=20, words=30)
    found = of_texts(texts, sample)
    assert (found["texts"], found["words"]) == (20, 30)
    assert of_texts(texts[::-1], sample) == found
    long = ["first second third " * 40, "fourth fifth sixth"]
    assert of_texts(long, Sample(head=5))["words"] == 8
    with pytest.raises(ValueError, match="0 words"):
        Sample(words=0)


def test_a_set_is_measured_by_turns_answers_kinds_and_tokens() -> None:
    rows = [
        said("one question", "an answer", (5, 6, 7)),
        said("another question", "an answer", (5, 6, 6)),
        said("a third one", "something else", (9,), "self-prompting/code"),
        said("a line of a file", source="my.jsonl:17"),
    ]
    rows[0].messages += [{"role": "user", "content": "and then?"}]
    found = measure(rows)
    assert (found["conversations"], found["user_turns"]) == (4, 5)
    assert (found["turns"]["texts"], found["answers"]["texts"]) == (5, 3)
    assert found["answers"]["near_duplicates"] == 1 / 3
    assert (found["token_sample"], found["token_types"]) == (7, 4)
    assert found["kinds"] == {"self-prompting/facts": 0.5, "self-prompting/code": 0.25, "my.jsonl": 0.25}
    cut = measure(rows[:2], Sample(answer_tokens=2))
    assert (cut["token_sample"], cut["token_types"]) == (2, 2)
    without = measure(rows[3:])
    assert without["answers"] is None
    assert without["token_types"] is None
    assert {row[2] for row in table(without)} == {"", "-"}


def test_an_example_for_each_answer_is_one_conversation() -> None:
    """As of templates that rewrite earlier turns: the second example says again what the first one said."""
    first, second = said("who are you", "a model", (5, 6)), said("who are you", "a model", (7, 8))
    second.messages = [
        *first.messages,
        {"role": "user", "content": "really?"},
        {"role": "assistant", "content": "yes"},
    ]
    found = measure([first, second, said("who are you", "a model", (5,))])
    assert (found["conversations"], found["user_turns"]) == (2, 3)
    assert (found["token_sample"], found["token_types"]) == (5, 4)


def test_ids_alone_show_nothing() -> None:
    with pytest.raises(ValueError, match="1 conversations were given, and no text of a user turn"):
        measure([Conversation([1, 2], [False, True])])


def test_the_command_tells_a_dataset_as_it_tells_its_shards(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows: list[Any] = []
    for _ in range(30):
        text = " ".join(f"w{rng.randrange(50)}" for _ in range(9))
        rows.append(said(text, text[::-1], tuple(rng.randrange(2, 40) for _ in range(5))))
    (tmp_path / "shards").mkdir()
    save_conversations(rows, tmp_path / "shards" / "conversations-00000.safetensors")
    save_dataset(rows, tmp_path / "data", Tally(), {})
    app = typer.Typer()
    app.command()(command.diversity)
    told = {}
    for name in ("shards", "data"):
        options = [str(tmp_path / name), "--words", "100", "--json", str(tmp_path / f"{name}.json")]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.output
        told[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert told[name].pop("data") == str(tmp_path / name)
    assert told["shards"] == told["data"] == measure(rows, Sample(words=100))
    assert told["data"]["turns"]["words"] == 100
    assert f"{'effective number of openings':40}{told['data']['turns']['openings']:>12.1f}" in result.output
    assert "by kind: self-prompting/facts 100.0%" in result.output
    with pytest.raises(OSError, match="is no dataset that can be read"):
        list(read(str(tmp_path / "nowhere")))
