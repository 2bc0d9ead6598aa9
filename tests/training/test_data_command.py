"""`hf-eagle3 data write`, run whole on a tiny target: repeatable, killed and resumed, clear about what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from helpers.chat_server import ChatServer, serving
from safetensors import SafetensorError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_eagle3 import embedded
from hf_eagle3.data import command, conversations, store, work, writing
from hf_eagle3.data.conversations import Conversation, load_conversations, save_conversations
from hf_eagle3.data.server import ServerAnswer, ServerRequest
from hf_eagle3.data.store import load_dataset
from hf_eagle3.data.tally import Tally

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


def test_what_is_to_be_left_out_is(write: Write, saved: Path, tmp_path: Path) -> None:
    """Personal data by default, a foreign script and evaluation questions on demand: each dropped and counted."""
    question = "w1 w2 w3 w4 w5 w6 w7 w8"
    turns = [f"w{i} w{i + 1} w{40 - i} w{i + 7}" for i in range(12)]
    turns += [f"w9 w8 {question} w7", "w4 w5 w6 write to jane.doe@example.com", "напиши мне стихотворение о весне"]
    (tmp_path / "prompts.txt").write_text("\n".join(turns))
    (tmp_path / "held.txt").write_text(question)
    told = write(
        "--out", tmp_path / "data", "--target", saved, "--prompts", tmp_path / "prompts.txt", "--max-answer", 24,
        "--slots", 4, "--near-duplicates", 0, "--exclude", tmp_path / "held.txt", "--max-foreign", 0.1,
    )  # fmt: skip
    assert "sharing words with held.txt 1" in told
    assert "with EMAIL_ADDRESS 1" in told
    assert "prompts: 12 kept, 3 dropped" in told
    said = " ".join(message["content"] for rows in rows_of(tmp_path / "data").values() for row in rows
                    for message in row["messages"] if message["role"] == "user")  # fmt: skip
    assert question not in said
    assert "@" not in said
    assert said.isascii()


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


def test_a_run_that_failed_at_once_binds_nobody(write: Write, saved: Path, prompts: Path, tmp_path: Path) -> None:
    """Its work folder holds settings, and no shard that was made with them."""
    options = ["--out", tmp_path / "data", "--target", saved, "--prompts", prompts, *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_shards", lambda *_: (_ for _ in ()).throw(OSError("the server has gone")))
        with pytest.raises(OSError, match="has gone"):
            write(*options, "--seed", 1)
    write(*options)
    assert "| seed | 0 |" in (tmp_path / "data" / "README.md").read_text()


def test_a_full_disk_is_told_once_and_costs_no_shard(
    write: Write, saved: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writing.write_dataset.__kwdefaults__, "shard_size", 4)
    options = ["--target", saved, "--prompts", prompts, *SMALL]
    write("--out", tmp_path / "whole", *options)
    tried = []
    save = conversations.save_file

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        tried.append(file.name)
        save(tensors, file, metadata)
        if len(tried) == 3:
            raise SafetensorError("No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversations, "save_file", full)
        with pytest.raises(OSError, match=r"conversations-00002.* cannot be written \(No space left.*make room"):
            write("--out", tmp_path / "data", *options)
    assert len(tried) == 3
    work_folder = tmp_path / ".data-work"
    assert [file.name for file in work_folder.glob("*.safetensors")] == sorted(
        f"conversations-0000{number}.safetensors" for number in range(2)
    )
    assert not list(work_folder.glob(".*"))
    write("--out", tmp_path / "data", *options)
    assert rows_of(tmp_path / "data") == rows_of(tmp_path / "whole")


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


def test_a_prompt_that_the_server_refuses_does_not_end_the_run(
    write: Write, saved: Path, prompts: Path, tmp_path: Path
) -> None:
    def poisoned(body: dict[str, Any]) -> tuple[int, str, str]:
        refused = body["messages"][-1]["content"].startswith("w7 ")
        return (400, "context too long", "stop") if refused else (200, "w1 w9", "stop")

    options = ["--out", tmp_path / "data", "--target", saved, "--prompts", prompts, *SMALL]
    with serving(ChatServer(poisoned)) as there:
        told = write(*options, "--server", there.url)
    assert "answers: 37 kept, 1 dropped (server refused it 1); the server refused first with 400: " in told
    rows = [row for split in rows_of(tmp_path / "data").values() for row in split]
    assert len(rows) == 27
    assert "my.jsonl:8" not in {row["source"] for row in rows}


def test_a_server_that_refuses_everything_is_told(write: Write, saved: Path, prompts: Path, tmp_path: Path) -> None:
    """And when it has been mended, with other options even, everything is asked."""
    options = ["--out", tmp_path / "data", "--target", saved, "--prompts", prompts, *SMALL]
    refusing = ChatServer(lambda body: (400, "max_tokens too large", "stop"))
    told = r"refused each of the first 8 requests \(400: .*max_tokens too large"
    with serving(refusing), pytest.raises(OSError, match=told):
        write(*options, "--server", refusing.url)
    with serving(ChatServer(lambda body: (200, "w1 w9", "stop"))) as there:
        write(*options, "--server", there.url, "--max-answer", 12)
    assert sum(map(len, rows_of(tmp_path / "data").values())) == 28


def test_options_that_contradict_one_another_are_refused(write: Write, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "data"]
    with pytest.raises(ValueError, match="--server was given without --prompts"):
        write(*out, "--server", "http://x/v1")
    with pytest.raises(ValueError, match="--server-model"):
        write(*out, "--prompts", "x.jsonl", "--server-model", "x")
    with pytest.raises(ValueError, match="--from-shards"):
        write(*out, "--from-shards", tmp_path, "--prompts", "x.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--temperature", "0"], "--temperature 0 was given.*above 0, or --greedy-share 1"),
        (["--temperature", "-1"], "--temperature -1 was given"), (["--temperature", "nan"], "--temperature nan"),
        (["--max-answer", "64", "--max-length", "64"], "up to 64 tokens do not fit .*--max-answer or .*--max-length"),
        (["--max-length", "100"], "up to 224 tokens do not fit .* up to 100"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(write: Write, tmp_path: Path, options: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        write("--out", tmp_path / "data", *options)
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
    assert "None" not in shown
    with pytest.raises(ValueError, match="no split 'test'"):
        write(tmp_path / "data", "--target", saved, "--split", "test", name="inspect")


def hint(told: str) -> list[str]:
    """What `write` says shows the text, as arguments of `inspect`."""
    shown = re.search(r"`hf-eagle3 data inspect ([^`]*)` shows the text", told)
    assert shown is not None, told
    return shlex.split(shown[1])


def test_inspect_takes_the_target_from_the_dataset(write: Write, saved: Path, prompts: Path, tmp_path: Path) -> None:
    """And what `write` says last is a command that works."""
    told = write("--out", tmp_path / "my data", "--target", saved, "--prompts", prompts, *SMALL)
    shown = write(*hint(told), name="inspect")
    assert re.search(r"<s> user : w\d+", shown)
    assert write(tmp_path / "my data", "--target", saved, name="inspect") == shown


def test_inspect_asks_for_a_target_that_is_not_recorded(write: Write, saved: Path, tmp_path: Path) -> None:
    """As of shards whose target was not told, and of datasets from elsewhere."""
    rows = [Conversation([4, 20, 21, 1], [False, False, True, True], [], {})] * 3
    save_conversations(rows, tmp_path / "ids.safetensors")
    told = write("--out", tmp_path / "data", "--from-shards", tmp_path / "ids.safetensors")
    assert hint(told) == [str(tmp_path / "data"), "--target", "THE_TARGET"]
    with pytest.raises(ValueError, match="does not name the target whose tokens it holds: give it with --target"):
        write(tmp_path / "data", name="inspect")
    write(tmp_path / "data", "--target", saved, name="inspect")
    write("--out", tmp_path / "named", "--from-shards", tmp_path / "ids.safetensors", "--target", saved)
    assert "[[w9 </s>]]" in write(tmp_path / "named", name="inspect").replace("\n", " ")
    (saved / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"The tokenizer of .*target' cannot be had .*--target"):
        write(tmp_path / "named", name="inspect")


def test_inspect_reads_the_embedded_target_where_the_dataset_names_it(
    write: Write, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "converted_target", lambda: saved)
    rows = [Conversation([4, 20, 21, 1], [False, False, True, True], [], {})] * 3
    facts = {"target": embedded.TARGET_ID, "weights": "embedded, 4-bit"}
    store.save_dataset(rows, tmp_path / "data", Tally(), facts)
    assert "[[w9 </s>]]" in write(tmp_path / "data", name="inspect").replace("\n", " ")


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    rows = [{"turns": [" ".join(f"w{i}" for i in range(10, 20)), "w30 w31"]}]
    (tmp_path / "evaluation" / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "evaluation"


def test_shards_that_share_words_with_questions_are_left_out(
    write: Write, saved: Path, tokenizer: PreTrainedTokenizerFast, evaluation: Path, tmp_path: Path
) -> None:
    """By their messages, else by what the target's tokenizer makes of their ids."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    passage = " ".join(f"w{i}" for i in range(11, 19))
    texts = ["w1 w2", f"w3 {passage} w4", "w5 w6", "w7 w8"]
    bare = [Conversation(ids(f"{text} w9"), [False] * len(ids(text)) + [True], [], {}) for text in texts]
    shards = tmp_path / "ids.safetensors"
    options = ["--from-shards", shards, "--exclude", evaluation]
    save_conversations(bare, shards)
    with pytest.raises(ValueError, match=r"token ids alone: give --target"):
        write("--out", tmp_path / "none", *options)
    told = write("--out", tmp_path / "one", *options, "--target", saved)
    assert "excluded questions: 3 kept, 1 dropped (of an evaluation file 1); sharing words with q.jsonl 1" in told
    kept = [row["input_ids"] for split in rows_of(tmp_path / "one").values() for row in split]
    assert sorted(kept) == sorted(row.ids for row in (bare[0], *bare[2:]))
    for row, text in zip(bare, ["w30, w31?", texts[1], *texts[2:]], strict=True):
        row.messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "w30 w31"}]
    save_conversations(bare, shards)
    assert "excluded questions: 2 kept, 2 dropped" in write("--out", tmp_path / "two", *options)
    assert "| excluded questions | " in (tmp_path / "two" / "README.md").read_text()
    with pytest.raises(OSError, match="no question files"):
        write("--out", tmp_path / "none", "--from-shards", shards, "--exclude", tmp_path / "nowhere")
    assert not (tmp_path / "none").exists()
