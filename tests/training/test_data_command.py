"""`hf-eagle3 data write`, run whole on a tiny target: repeatable, killed and resumed, clear about what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_eagle3.data import command, work, writing
from hf_eagle3.data.conversations import Conversation, load_conversations, save_conversations
from hf_eagle3.data.server import ServerAnswer, ServerRequest
from hf_eagle3.data.store import load_dataset

Write = Callable[..., str]
SMALL = ["--max-answer", "24", "--slots", "4", "--keep-personal-data", "--near-duplicates", "0"]


@pytest.fixture
def saved(tmp_path: Path, target: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    return tmp_path / "target"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """30 prompts, every third of two turns; two are the same, and one is too short."""
    rows = [{"turns": [f"w{i} w{i + 1} w{40 - i} w3"] + ["w5 w6 w7"] * (i % 3 == 0)} for i in range(28)]
    rows[20:20] = [rows[4], {"turns": ["w1"]}]
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def write() -> Write:
    app = typer.Typer()
    app.command("write")(command.write)
    app.command("inspect")(command.inspect)

    def run(*arguments: Any, name: str = "write") -> str:
        result = CliRunner().invoke(app, [name, *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: list(split) for name, split in load_dataset(folder).items()}


def test_given_prompts_become_a_dataset(write: Write, saved: Path, prompts: Path, tmp_path: Path) -> None:
    """Every count of the card is that of the rows; the same command gives the same rows and the same card."""
    options = ["--target", saved, "--prompts", prompts, *SMALL]
    told = write("--out", tmp_path / "one", *options)
    assert "prompts: 28 kept, 2 dropped (duplicate 1, too short 1)" in told
    rows = rows_of(tmp_path / "one")
    every = [row for split in rows.values() for row in split]
    card = (tmp_path / "one" / "README.md").read_text()
    assert f"| examples | {len(every)} |" in card.replace(",", "")
    assert 20 <= len(every) <= 28
    assert {row["turns"] for row in every} == {1, 2}
    assert {row["source"] for row in every} <= {f"my.jsonl:{number}" for number in range(1, 31)}
    assert not {"my.jsonl:21", "my.jsonl:22"} & {row["source"] for row in every}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.jsonl", "one", "target"]
    write("--out", tmp_path / "two", *options)
    assert rows_of(tmp_path / "two") == rows
    assert (tmp_path / "two" / "README.md").read_text() == card
    with pytest.raises(OSError, match="--overwrite"):
        write("--out", tmp_path / "one", *options)
    write("--out", tmp_path / "one", *options, "--overwrite", "--seed", 1)
    assert rows_of(tmp_path / "one") != rows


def killed(tmp_path: Path, options: list[Any], interviews: int) -> None:
    """Run the command in a process of its own that is killed with SIGKILL after some `interviews`."""
    script = (
        "import os, signal, typer\n"
        "from hf_eagle3.data import command, interviewer, writing\n"
        "ended, end = [0], interviewer._Interviewer._end\n"
        "def count(self, interview):\n"
        "    end(self, interview)\n"
        "    ended[0] += 1\n"
        f"    if ended[0] == {interviews}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "interviewer._Interviewer._end = count\n"
        "writing.write_dataset.__kwdefaults__['shard_size'] = 4\n"
        "typer.run(command.write)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, options)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_run_goes_on_to_the_same_dataset(write: Write, saved: Path, prompts: Path, tmp_path: Path) -> None:
    options = ["--target", saved, "--prompts", prompts, *SMALL]
    write("--out", tmp_path / "whole", *options)
    killed(tmp_path, ["--out", tmp_path / "broken", *options], interviews=19)
    before = list(load_conversations(tmp_path / ".broken-work"))
    assert len(before) >= 8
    assert not (tmp_path / "broken").exists()
    (tmp_path / ".broken-work" / "tally-00099.json").write_text("a tally whose shard was never written")
    asked = []
    real = work.write_shards

    def watched(interviewer: Any, *rest: Any) -> None:
        def counted() -> Iterator[Any]:
            for interview in interviewer:
                asked.append(interview.number)
                yield interview

        class Passing:
            begun = 0
            answer_tokens = property(lambda self: interviewer.answer_tokens)
            __iter__ = staticmethod(counted)

        real(Passing(), *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_eagle3.data.writing.write_shards", watched)
        write("--out", tmp_path / "broken", *options)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    assert (tmp_path / "broken" / "README.md").read_text() == (tmp_path / "whole" / "README.md").read_text()
    assert not set(asked) & {conversation.about["conversation"] for conversation in before}
    assert not (tmp_path / ".broken-work").exists()


def test_self_prompting_goes_on_where_it_stopped(
    write: Write, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--out", tmp_path / "data", "--target", saved, *SMALL, "--answer-tokens", 400]
    monkeypatch.setitem(command.write.__globals__, "_FOREIGN", None)
    appended = work.WorkFolder.append

    def stopped(self: work.WorkFolder, *what: Any) -> None:
        if self.shards == 2:
            raise RuntimeError("killed")
        appended(self, *what)

    monkeypatch.setitem(writing.write_dataset.__kwdefaults__, "shard_size", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.WorkFolder, "append", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            write(*options)
    before = list(load_conversations(tmp_path / ".data-work"))
    assert len(before) >= 8
    write(*options)
    rows = [row for split in rows_of(tmp_path / "data").values() for row in split]
    assert sum(sum(row["loss_mask"]) for row in rows) >= 400
    kept = [row["input_ids"] for row in rows]
    assert all(conversation.ids in kept for conversation in before)
    assert len(rows) > len(before)
    assert "No outside data went in" in (tmp_path / "data" / "README.md").read_text()


def test_other_settings_and_other_processes_are_refused(
    write: Write, saved: Path, prompts: Path, tmp_path: Path
) -> None:
    options = ["--out", tmp_path / "data", "--target", saved, "--prompts", prompts, *SMALL]
    with pytest.raises(ValueError, match="--held-out"):
        write(*options, "--held-out", 1000)  # all is answered by then, and stays
    with pytest.raises(ValueError, match=r"seed 0 \(now 1\)"):
        write(*options, "--seed", 1)
    prompts.write_text(prompts.read_text() + '\n{"prompt": "w1 w1 w1"}')
    with pytest.raises(ValueError, match="digest"):
        write(*options)
    with FileLock(tmp_path / ".data-work" / "lock"), pytest.raises(OSError, match="Another process"):
        write(*options)


class WordServer:
    """Answers every chat with one word, and fails when it has answered `WordServer.limit` of them."""

    limit = 10_000

    def __init__(self, url: str, model: str | None, token: str | None, concurrency: int) -> None:
        self.model, self.answered = model or "the only one", 0

    def answers(self, requests: Iterator[ServerRequest]) -> Iterator[ServerAnswer]:
        for request in requests:
            if self.answered == self.limit:
                raise OSError("the server has gone")
            self.answered += 1
            yield ServerAnswer(request, f"w{len(request.messages)} w9", finished=True)


def test_a_server_answers(
    write: Write, saved: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_eagle3.data.server.Server", WordServer)
    monkeypatch.setattr(WordServer, "limit", 5)
    options = ["--out", tmp_path / "data", "--target", saved, "--prompts", prompts, "--server", "http://x/v1", *SMALL]
    with pytest.raises(OSError, match="has gone"):
        write(*options)
    assert len(list(load_conversations(tmp_path / ".data-work"))) >= 3
    monkeypatch.setattr(WordServer, "limit", 10_000)
    write(*options)
    rows = [row for split in rows_of(tmp_path / "data").values() for row in split]
    assert len(rows) == 28
    assert sum(row["turns"] == 2 for row in rows) == 10
    assert all(row["messages"][-1]["content"] == f"w{2 * row['turns'] - 1} w9" for row in rows)
    assert all(row["input_ids"][-1] == 1 and row["loss_mask"][-3:] == [True] * 3 for row in rows)
    assert "the only one" in (tmp_path / "data" / "README.md").read_text()


def test_options_that_contradict_one_another_are_refused(write: Write, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "data"]
    with pytest.raises(ValueError, match="--server was given without --prompts"):
        write(*out, "--server", "http://x/v1")
    with pytest.raises(ValueError, match="--server-model"):
        write(*out, "--prompts", "x.jsonl", "--server-model", "x")
    with pytest.raises(ValueError, match="--from-shards"):
        write(*out, "--from-shards", tmp_path, "--prompts", "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_target_of_a_short_context_is_told(write: Write, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--max-length 2048"):
        write("--out", tmp_path / "data", "--target", saved, "--max-length", 4096)


def test_shards_become_a_dataset(write: Write, tmp_path: Path) -> None:
    """Without a target; what has no answer is left out, and counted."""
    rows = [Conversation([5, number, 9], [False, True, number % 2 == 0], [], {}) for number in range(8)]
    save_conversations([*rows, Conversation([1], [False])], tmp_path / "ids.safetensors")
    told = write("--out", tmp_path / "data", "--from-shards", tmp_path / "ids.safetensors")
    assert "conversations: 8 kept, 1 dropped (no answer 1)" in told
    loaded = [row for split in rows_of(tmp_path / "data").values() for row in split]
    assert sorted(row["input_ids"] for row in loaded) == [row.ids for row in rows]
    assert all(row["loss_mask"] == rows[row["input_ids"][1]].mask for row in loaded)


def test_inspect_shows_what_the_loss_is_on(write: Write, saved: Path, tmp_path: Path) -> None:
    rows = [Conversation([4, 20, 21, 1], [False, False, True, True], [], {"source": "here"})] * 3
    save_conversations(rows, tmp_path / "ids.safetensors")
    write("--out", tmp_path / "data", "--from-shards", tmp_path / "ids.safetensors")
    shown = write(tmp_path / "data", "--target", saved, name="inspect")
    assert "user w8[[w9 </s>]]" in shown.replace("\n", " ")
    with pytest.raises(ValueError, match="no split 'test'"):
        write(tmp_path / "data", "--target", saved, "--split", "test", name="inspect")
