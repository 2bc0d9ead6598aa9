"""The command line, end to end on a tiny pair."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hf_eagle3 import cli, embedded
from hf_eagle3.default_trees import default_tree
from hf_eagle3.evaluation import lossless, timing
from hf_eagle3.evaluation.command import Precision, load_pair
from hf_eagle3.evaluation.timing import Run

COST = re.compile(
    r"(\d+) tokens · acceptance length [\d.]+ \(tokens per verification, bonus included\) · \d+ target forwards · "
    r"[\d.]+ tokens/s"
)


def run(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hf-eagle3", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def pair_options(pair_folders) -> list[str]:
    return ["--target", pair_folders.target, "--head", pair_folders.head, "--max-new-tokens", "12", "--device", "cpu"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    for name in ("easy", "hard"):
        rows = [json.dumps({"question_id": n, "turns": [f"w{n} w{n + 3} w5"]}) for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_help_lists_the_commands() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for command in ("generate", "eval"):
        assert command in shown.output


def test_a_command_that_cannot_be_imported_does_not_stand_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._COMMANDS, "train", "hf_eagle3.no_such_module:train")
    assert run("generate", "--help").exit_code == 0
    assert isinstance(run("train").exception, ModuleNotFoundError)


def test_generate_streams_and_says_what_it_took(pair_options: list[str]) -> None:
    shown = run("generate", "w1 w2 w3", *pair_options)
    assert shown.exit_code == 0, shown.output
    cost = COST.search(shown.output)
    assert cost is not None, shown.output
    assert 1 <= int(cost.group(1)) <= 12
    answer = shown.output.split("w1 w2 w3\n")[1].split("\n")[0]
    assert re.fullmatch(r"(w\d+ ?)+", answer)


def test_plain_drafts_nothing(pair_folders) -> None:
    shown = run("generate", "w1 w2", "--plain", "--target", pair_folders.target, "--max-new-tokens", "5")
    assert shown.exit_code == 0, shown.output
    assert "acceptance length" not in shown.output
    assert "5 tokens · 5 target forwards" in shown.output


def test_compare_sets_plain_generate_beside_it(pair_options: list[str]) -> None:
    shown = run("generate", "w1 w2", "w9 w4", "--compare", *pair_options)
    assert shown.exit_code == 0, shown.output
    assert len(re.findall(r"plain generate: .* · ratio [\d.]+ · identical: yes", shown.output)) == 2
    assert "2 questions · mean ratio to plain generate" in shown.output


def test_compare_reports_an_answer_that_differs(monkeypatch: pytest.MonkeyPatch, pair_options: list[str]) -> None:
    honest = timing.run_drafted

    def wrong(*arguments, **options) -> Run:
        run = honest(*arguments, **options)
        tokens = [*run.tokens[:2], 5 if run.tokens[2] != 5 else 6]
        return replace(run, tokens=tokens)

    monkeypatch.setattr("hf_eagle3.evaluation.answer.run_drafted", wrong)
    monkeypatch.setattr(lossless, "run_drafted", wrong)
    shown = run("generate", "w1 w2", "--compare", *pair_options)
    assert "identical up to token 2, DIFFERENT in float64 too" in shown.output


def test_sampled_runs_claim_no_identity(pair_options: list[str]) -> None:
    shown = run("generate", "w1 w2", "--compare", "--temperature", "1.0", *pair_options)
    assert shown.exit_code == 0, shown.output
    assert "identical" not in shown.output


def test_eval_speed_table_and_json(questions: Path, pair_options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shown = run("eval", "--questions", str(questions), "--limit", "2", "--json", str(out), *pair_options)
    assert shown.exit_code == 0, shown.output
    assert "mean of the files' ratios" in shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in record["files"]] == ["easy", "hard", "all"]
    assert [row["questions"] for row in record["files"]] == [2, 2, 4]
    assert record["provenance"]["settings"]["max_new_tokens"] == 12
    assert len(record["questions"]) == 4


def test_eval_at_two_temperatures_with_figures(questions: Path, pair_options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--limit", "2", "--json", str(out), "--figures", str(tmp_path / "figures"), *pair_options]
    shown = run("eval", "--questions", str(questions), "--temperature", "0", "--temperature", "1", *options)
    assert shown.exit_code == 0, shown.output
    assert "temperature 1" in shown.output
    assert "0-alpha" in shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["temperature"] for row in record["files"]] == [0.0] * 3 + [1.0] * 3
    assert [row["temperature"] for row in record["questions"]] == [0.0] * 4 + [1.0] * 4
    for row in record["files"]:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["tokens_per_second"] / row["plain_tokens_per_second"] == pytest.approx(row["total_ratio"])
        assert all(0 <= rate <= 1 for rate in row["acceptance_rates"])
        assert len(row["acceptance_counts"]) == len(row["acceptance_rates"])
    assert [mean["temperature"] for mean in record["means"]] == [0.0, 1.0]
    lengths = [row["acceptance_length"] for row in record["files"][:2]]
    assert record["means"][0]["acceptance_length"] == pytest.approx(sum(lengths) / 2)
    settings = record["provenance"]["settings"]
    assert settings["target"] in pair_options
    assert settings["head"] in pair_options
    assert settings["temperature"] == [0.0, 1.0]
    assert settings["tree"] == vars(default_tree(torch.device("cpu"), torch.float32))
    assert settings["sampling"] == {"top_k": 0, "top_p": 1.0}
    assert (record["label"], record["training_tokens"]) == ("head", None)
    assert record["questions"][0]["verdict"]["identical"]
    assert record["questions"][4]["verdict"] is None
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    again = run("figures", str(out), "--out", str(tmp_path / "again"))
    assert again.exit_code == 0, again.output
    assert len(drawn) >= 2
    for name in drawn:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "figures" / name).read_bytes()


def test_eval_of_a_chain_on_a_data_set(pair_options: list[str], tmp_path: Path) -> None:
    from datasets import Dataset

    (tmp_path / "sums").mkdir()
    rows = [{"question": f"w{n} w3", "hint": "w9"} for n in range(5)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "sums" / "test.parquet"))
    out = tmp_path / "out.json"
    options = ["--questions-column", "question", "--limit", "3", "--tree-top-k", "1", "--no-shares", "--label", "mine"]
    shown = run("eval", "--questions", str(tmp_path / "sums"), "--json", str(out), *options, *pair_options)
    assert shown.exit_code == 0, shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["label"] == "mine"
    assert [(row["name"], row["questions"], row["shares"]) for row in record["files"]] == [
        ("sums", 3, None), ("all", 3, None),
    ]  # fmt: skip
    depth = default_tree(torch.device("cpu"), torch.float32).tree_depth
    for question in record["questions"]:
        for length, levels in zip(question["acceptance_lengths"], question["tree_levels"], strict=True):
            assert 1 <= length <= levels + 1 <= 1 + depth


def test_eval_says_where_answers_part(
    monkeypatch: pytest.MonkeyPatch, questions: Path, pair_options: list[str]
) -> None:
    honest = timing.run_drafted

    def wrong(*arguments, **options) -> Run:
        run = honest(*arguments, **options)
        return replace(run, tokens=[*run.tokens[:-1], (run.tokens[-1] + 1) % 64])

    monkeypatch.setattr(timing, "run_drafted", wrong)
    options = ["--dtype", "bfloat16", "--files", "easy", "--limit", "1", "--no-shares"]
    shown = run("eval", "--questions", str(questions), *options, *pair_options)
    assert re.search(r"easy 0: identical.* \(.*logit gap [\d.e+-]+", shown.output), shown.output


def test_eval_lossless_passes_on_all_questions(questions: Path, pair_options: list[str]) -> None:
    shown = run("eval", "--questions", str(questions), "--lossless", *pair_options)
    assert shown.exit_code == 0, shown.output
    assert "6 questions · 6 identical · 0 mismatches · acceptance length" in shown.output
    assert "float32" in shown.output


def test_eval_lossless_fails_on_a_wrong_token(
    monkeypatch: pytest.MonkeyPatch, questions: Path, pair_options: list[str]
) -> None:
    honest = timing.run_drafted

    def wrong(*arguments, **options) -> Run:
        run = honest(*arguments, **options)
        return replace(run, tokens=[*run.tokens[:-1], (run.tokens[-1] + 1) % 64])

    monkeypatch.setattr(timing, "run_drafted", wrong)
    monkeypatch.setattr(lossless, "run_drafted", wrong)
    shown = run("eval", "--questions", str(questions), "--lossless", "--files", "easy", *pair_options)
    assert shown.exit_code == 1
    assert "3 mismatches" in shown.output


@pytest.mark.parametrize("device", ["banana", "cuda:x", "", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pair_folders, device: str
) -> None:
    arguments = ["generate", "hi", "--target", pair_folders.target, "--head", pair_folders.head]
    assert run_main(monkeypatch, *arguments, "--device", device) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"hf-eagle3: --device {device!r} was given, which cannot be used here (")
    assert "give cpu" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi", "--plain", "--compare"], "--plain and --compare were both given"),
        (["generate", "hi", "--target", "some/model"], "Target some/model came without a head"),
        (["eval", "--questions", "./no-folder"], "No question files in no-folder"),
        (["eval", "--questions", "x", "--temperature", "0", "--temperature", "-1"], "The temperature is -1.0"),
        (["eval", "--questions", "x", "--lossless", "--temperature", "1"], "--lossless compares tokens"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"hf-eagle3: {message}")
    assert told.count("\n") == 1


def test_what_another_library_tells_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_) -> None:
        raise OSError("No such model.\n\n  Look at  the Hub.\n")

    monkeypatch.setattr(cli, "app", fail)
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err == "hf-eagle3: No such model. Look at  the Hub.\n"


@pytest.mark.parametrize(("able", "usual"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_embedded_pair_comes_in_what_the_cpu_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, able: bool, usual: torch.dtype
) -> None:
    """But in the dtype that was asked for, and other targets in their own."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    monkeypatch.setattr(
        embedded, "load", lambda *given: asked.append(given) or (SimpleNamespace(dtype=given[0]), None)
    )
    monkeypatch.setattr(embedded, "load_head", lambda *given: asked.append(given))
    load_pair(None, None, None, "cpu", drafting=True)
    load_pair(None, None, Precision.bfloat16, "cpu", drafting=False)
    assert asked == [(usual, "cpu"), (usual, "cpu"), ("bfloat16", "cpu")]


def test_another_target_comes_in_its_own_dtype(monkeypatch: pytest.MonkeyPatch, pair_folders) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    model, _, head = load_pair(pair_folders.target, pair_folders.head, None, "cpu", drafting=True)
    assert model.dtype == head.dtype == torch.float32


def test_trace_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_EAGLE3_TRACE", "1")
    monkeypatch.setattr(sys, "argv", ["hf-eagle3", "generate", "hi", "--plain", "--compare"])
    with pytest.raises(ValueError, match="--plain and --compare"):
        cli.main()
