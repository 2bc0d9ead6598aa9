"""Reading questions and turning them into prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_eagle3.evaluation.questions import encode_chat, read_questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("easy", 3), ("hard", 2)):
        rows = [{"question_id": 10 + n, "turns": [f"{name} {n}", "and then?"]} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return tmp_path


def test_first_turns_by_file(folder: Path) -> None:
    asked = read_questions(folder)
    assert list(asked) == ["easy", "hard"]
    assert [question.text for question in asked["easy"]] == ["easy 0", "easy 1", "easy 2"]
    assert (asked["hard"][1].file, asked["hard"][1].name) == ("hard", "11")


def test_chosen_files_and_limit(folder: Path) -> None:
    asked = read_questions(folder, files=["hard.jsonl", "easy"], limit=1)
    assert {name: len(questions) for name, questions in asked.items()} == {"hard": 1, "easy": 1}
    assert list(asked) == ["hard", "easy"]


def test_what_is_missing_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(OSError, match="No question files in"):
        read_questions(tmp_path_factory.mktemp("empty"))
    with pytest.raises(OSError, match=r"No question file odd\.jsonl in .*; there are easy, hard\."):
        read_questions(folder, files=["odd"])


@pytest.mark.parametrize(
    ("line", "message"),
    [("{not json", "Line 2 of .* is not JSON"), ("{}", "has no `turns`"), ('{"turns": []}', "has no `turns`")],
)
def test_broken_lines_are_named(folder: Path, line: str, message: str) -> None:
    (folder / "easy.jsonl").write_text(f'{{"turns": ["fine"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_questions(folder)


def test_prompt_is_the_chat_template_or_the_text_itself(pair_folders) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair_folders.target)
    inputs = encode_chat(tokenizer, "w1 w2")
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == ["<user>", "w1", "w2", "<end>", "<answer>"]
    assert inputs["attention_mask"].tolist() == [[1] * 5]
    tokenizer.chat_template = None
    assert tokenizer.convert_ids_to_tokens(encode_chat(tokenizer, "w1 w2")["input_ids"][0]) == ["w1", "w2"]
