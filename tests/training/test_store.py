"""Shards and datasets on disk: whole or not at all, what was put in comes out, and cards that repeat."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard
from safetensors.torch import save_file

from hf_eagle3.data import store
from hf_eagle3.data.conversations import Conversation, load_conversations, save_conversations
from hf_eagle3.data.store import load_dataset, recorded_target, save_dataset
from hf_eagle3.data.tally import Tally

SHIPPED = Path(__file__).parents[2] / "model_cards" / "SmolLM2-135M-Instruct-EAGLE3" / "training_ids.safetensors"
FACTS: dict[str, Any] = {"target": "tiny/target", "seed": 0, "shares": [0.5, 0.5]}


def conversation(number: int, **about: Any) -> Conversation:
    ids = [number, 70_000, 5, 6 + number % 3]
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a | b"}]
    facts = {"source": "here", "turns": 1, "temperature": 0.7, "finished": True, "conversation": number}
    return Conversation(ids, [False, False, True, True], messages, facts | about)


def counted() -> Tally:
    tally = Tally()
    tally.kept("prompts", 40)
    tally.dropped("prompts", "duplicate", 3)
    tally.noted("prompts", "with a | in it", 2)
    return tally


@pytest.mark.parametrize("highest", [5, 65_535, 65_536])
def test_stored_ids_come_back_as_they_were(tmp_path: Path, highest: int) -> None:
    """Ids that no tokenizer would give for their text are kept, never tokenised again."""
    rows = [conversation(1), Conversation([highest, 5, 5], [False, True, True]), Conversation([7], [True], [], {})]
    rows[0].ids = [0, 1, 2, 3]
    save_conversations(rows, tmp_path / "conversations-00000.safetensors")
    save_conversations([], tmp_path / "conversations-00001.safetensors")
    save_conversations(rows[:1], tmp_path / "conversations-00002.safetensors")
    assert list(load_conversations(tmp_path)) == [*rows, rows[0]]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_holds_no_conversations_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No conversations"):
        list(load_conversations(tmp_path / "nowhere"))
    save_file({"weight": torch.ones(2)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="holds weight"):
        list(load_conversations(tmp_path / "head.safetensors"))
    (tmp_path / "notes.txt").write_text("no tensors at all")
    with pytest.raises(ValueError, match=r"notes.txt is no whole shard"):
        list(load_conversations(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("changed", "metadata", "told"),
    [
        ({"mask": torch.ones(3, dtype=torch.bool)}, {}, "4 ids and 3 marks for 2 conversations of 4 tokens"),
        ({"lengths": torch.tensor([2, 1])}, {}, "2 conversations of 3 tokens"),
        ({}, {"about": "[{}]"}, "told of 1 and 2 times"), ({}, {"messages": "[{"}, "no whole shard"),
    ],
)  # fmt: skip
def test_shards_whose_parts_do_not_agree_are_told(
    tmp_path: Path, changed: dict[str, torch.Tensor], metadata: dict[str, str], told: str
) -> None:
    tensors = {"ids": torch.arange(4), "mask": torch.ones(4, dtype=torch.bool), "lengths": torch.tensor([2, 2])}
    save_file(tensors | changed, tmp_path / "ids.safetensors", metadata)
    with pytest.raises(ValueError, match=told):
        list(load_conversations(tmp_path / "ids.safetensors"))


def test_shards_of_the_first_release_are_read(tmp_path: Path) -> None:
    roles = torch.tensor([0, 1, 2, 2, 0, 2], dtype=torch.uint8)
    tensors = {"ids": torch.arange(6, dtype=torch.int32), "roles": roles, "lengths": torch.tensor([4, 2])}
    save_file(tensors, tmp_path / "old.safetensors", {"about": '[{"kind": "facts"}, {}]'})
    one, two = load_conversations(tmp_path / "old.safetensors")
    assert one == Conversation([0, 1, 2, 3], [False, False, True, True], [], {"kind": "facts"})
    assert two == Conversation([4, 5], [False, True], [], {})


def test_the_shipped_conversations_are_read() -> None:
    rows = list(load_conversations(SHIPPED))
    assert len(rows) == 2368
    assert sum(len(row.ids) for row in rows) == 509_489
    assert all(row.mask[-1] and not row.mask[0] for row in rows)


def test_a_dataset_holds_what_was_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the conversations' numbers, the examples of one of them in one split."""
    monkeypatch.setattr(store, "_AT_ONCE", 7)
    rows = [conversation(number) for number in reversed(range(40))]
    rows += [conversation(number, turns=2, finished=False) for number in range(10)]
    save_dataset(iter(rows), tmp_path / "data", counted(), FACTS, held_out=6, seed=3)
    loaded = load_dataset(tmp_path / "data")
    validation = {row["input_ids"][0] for row in loaded["validation"]}
    assert len(validation) == 6
    assert not validation & {row["input_ids"][0] for row in loaded["train"]}
    for split in loaded.values():
        numbers = [row["input_ids"][0] for row in split]
        assert numbers == sorted(numbers)
    first = loaded["train"][0]
    expected = conversation(first["input_ids"][0])
    assert first["input_ids"] == expected.ids
    assert first["loss_mask"] == expected.mask
    assert first["messages"] == expected.messages
    assert (first["source"], first["turns"], first["finished"]) == ("here", 1, True)
    assert first["temperature"] == pytest.approx(0.7)
    assert sum(len(split) for split in loaded.values()) == 50
    assert sum(row["turns"] == 2 for split in loaded.values() for row in split) == 10


def test_the_same_conversations_give_the_same_dataset_and_card(tmp_path: Path) -> None:
    cards, validation = [], []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        save_dataset(map(conversation, range(60)), tmp_path / name, counted(), FACTS, seed=seed)
        cards.append((tmp_path / name / "README.md").read_text())
        validation.append(load_dataset(tmp_path / name)["validation"][:]["input_ids"])
    assert cards[0] == cards[1]
    assert validation[0] == validation[1] != validation[2]
    assert len(validation[0]) == 3  # 5 %


def test_the_card_tells_what_was_counted(tmp_path: Path) -> None:
    rows = [
        conversation(number, temperature=0.0 if number < 15 else 0.7, finished=number % 2 == 0) for number in range(20)
    ]
    save_dataset(rows, tmp_path / "data", counted(), FACTS, held_out=10)
    card = DatasetCard.load(tmp_path / "data" / "README.md")
    assert card.data.to_dict()["size_categories"] == ["n<1K"]
    assert "| prompts | 40 | duplicate: 3 | with a \\| in it: 2 |" in card.text
    assert "| tokens | 40 | 40 |" in card.text
    assert "| answer tokens | 20 | 20 |" in card.text
    assert "| target | tiny/target |" in card.text
    assert "No outside data went in" in card.text
    greedy = next(line for line in card.text.splitlines() if line.startswith("| answered greedily"))
    shares = [float(cell.strip(" %")) for cell in greedy.split("|")[2:4]]
    assert sum(shares) == pytest.approx(150)
    save_dataset(rows, tmp_path / "given", Tally(), FACTS | {"prompts": ["my.jsonl"]})
    assert "under the licences of their sources (my.jsonl)" in (tmp_path / "given" / "README.md").read_text()


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    """Old shards tell greedy answers, but not the temperature of the others: no share follows from that."""
    rows = [Conversation([1, 2], [False, True], [], {"greedy": number < 2}) for number in range(4)]
    save_dataset(rows, tmp_path / "data", Tally(), {}, held_out=2)
    card = (tmp_path / "data" / "README.md").read_text()
    assert "| answered greedily | not known | not known |" in card
    assert load_dataset(tmp_path / "data")["train"][0]["messages"] == []


@pytest.mark.parametrize(("count", "held_out"), [(1, None), (3, 3), (3, 0)])
def test_both_splits_need_conversations(tmp_path: Path, count: int, held_out: int | None) -> None:
    with pytest.raises(ValueError, match="--held-out"):
        save_dataset(map(conversation, range(count)), tmp_path / "data", Tally(), FACTS, held_out)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """As if no file could grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    rows, long = [conversation(number) for number in range(4)], Conversation([5] * 9000, [True] * 9000)
    shard, folder = tmp_path / "conversations-00000.safetensors", tmp_path / "data"
    save_conversations(rows, shard)
    save_dataset(rows, folder, Tally(), FACTS)
    with full_disk(1024):
        with pytest.raises(OSError, match=r"conversations-00000.* cannot be written .*: make room"):
            save_conversations([long], shard)
        with pytest.raises(OSError, match=r"data cannot be written .*: make room"):
            save_dataset([long] * 4, folder, Tally(), FACTS, overwrite=True)
        with pytest.raises(OSError, match=r"other cannot be written"):
            save_dataset([long] * 4, tmp_path / "other", Tally(), FACTS)
    assert list(load_conversations(shard)) == rows
    assert sum(map(len, load_dataset(folder).values())) == 4
    assert {path.name for path in tmp_path.iterdir()} == {shard.name, "data"}


def test_nothing_kept_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No conversation was kept"):
        save_dataset([], tmp_path / "data", Tally(), FACTS)


def test_only_a_dataset_is_replaced_and_only_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, folder = [conversation(number) for number in range(4)], tmp_path / "data"
    folder.mkdir()
    save_dataset(rows, folder, Tally(), FACTS)  # an empty folder is free
    with pytest.raises(OSError, match="--overwrite"):
        save_dataset(rows, folder, Tally(), FACTS)
    monkeypatch.setattr(store, "card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_dataset(rows[:3], folder, Tally(), FACTS, overwrite=True)
    assert sum(map(len, load_dataset(folder).values())) == 4
    monkeypatch.undo()
    save_dataset(rows[:3], folder, Tally(), FACTS, overwrite=True)
    assert sum(map(len, load_dataset(folder).values())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="no dataset"):
        save_dataset(rows, folder, Tally(), FACTS, overwrite=True)


def test_datasets_of_others_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = Dataset.from_dict({"input_ids": [[1, 2]], "text": ["x"]})
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="no loss_mask in its split 'train'"):
        load_dataset(tmp_path / "data")
    rows.add_column("loss_mask", [[False, True]]).to_parquet(tmp_path / "hub" / "train.parquet")
    assert load_dataset(tmp_path / "hub")["train"][0]["loss_mask"] == [False, True]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty"):
        load_dataset(tmp_path / "empty")


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "llama", "eos_token_id": [1, 2]}', "tokenizer.json": '{"added_tokens": []}'},
        {"notes.md": "no rows"}, {"rows.jsonl": "{broken"}, {"rows.parquet": "nonsense"},
        {"dataset_dict.json": "{}", "README.md": ""}, {"dataset_dict.json": "{oops"}, {"dataset_dict.json": "[]"},
        {"dataset_dict.json": '{"splits": ["train"]}'}, {"state.json": "{}"},
    ],
)  # fmt: skip
def test_what_is_no_dataset_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """A model's folder, say."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    for name, text in files.items():
        (tmp_path / "folder" / name).write_text(text)
    with pytest.raises((OSError, ValueError)) as error:
        load_dataset(tmp_path / "folder")
    assert "hf-eagle3 data write" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where/at/all", "a/b/c/d", "one two"])
def test_a_dataset_that_is_not_there_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"is no dataset that can be read .*hf-eagle3 data write"):
        load_dataset(name)


def test_an_empty_name_is_no_dataset() -> None:
    with pytest.raises(ValueError, match="empty name"):
        load_dataset("")


def test_the_card_names_the_target_for_programs(tmp_path: Path) -> None:
    rows = [conversation(number) for number in range(4)]
    save_dataset(rows, tmp_path / "named", Tally(), FACTS)
    assert recorded_target(tmp_path / "named") == "tiny/target"
    save_dataset(rows, tmp_path / "unnamed", Tally(), {"seed": 0})
    assert recorded_target(tmp_path / "unnamed") is None
    for text in ("# A card of the first release", "---\nhf_eagle3: 3\n---\n", "---\na: [\n---\n", "---\n- a\n---\n"):
        (tmp_path / "named" / "README.md").write_text(text)
        assert recorded_target(tmp_path / "named") is None
    (tmp_path / "named" / "README.md").unlink()
    assert recorded_target(tmp_path / "named") is None
