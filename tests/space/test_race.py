"""Two answers by turns: the tokens of plain `generate`, clocks that stop, and threads that end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import race as racing
import torch
from chat import Conversation
from pair import Pair
from race import Race
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_eagle3
from hf_eagle3.evaluation.timing import Settings


@pytest.fixture(scope="module")
def pair(pair_folders: Any) -> Pair:
    model: Any = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    model.generation_config.eos_token_id = None  # answers of random weights end anywhere
    tokenizer = AutoTokenizer.from_pretrained(pair_folders.target)
    return Pair(model, tokenizer, hf_eagle3.load_head(pair_folders.head), "head", "target")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is over after every step, so that every step is a place where the two change."""
    monkeypatch.setattr(racing, "TURN", 0.0)


def _inputs(*ids: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def _settings(tokens: int, temperature: float = 0.0) -> Settings:
    return Settings(tokens, temperature, tree={"num_assistant_tokens": 40, "tree_depth": 3, "tree_top_k": 16})


def _run(race: Race) -> None:
    while race.advance():
        pass


def test_both_answers_are_those_of_generate(pair: Pair) -> None:
    inputs, settings = _inputs(1, 9, 3, 2), _settings(40)
    race = Race(pair.model, pair.head, inputs, settings)
    _run(race)
    expected = pair.model.generate(**inputs, **settings.keywords()).sequences[0, 4:].tolist()
    assert race.plain.tokens == expected
    assert race.drafted.tokens == expected == [token.id for token in race.drafted.trace.tokens]
    assert race.drafted.trace.acceptance_length > 1
    assert not race.stopped


def test_the_turn_goes_to_the_one_with_less_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(pair.model, pair.head, _inputs(1, 9, 3, 2), _settings(30))
    clocks = []
    turn = racing.Runner.turn

    def watched(runner: racing.Runner) -> None:
        clocks.append(
            (runner.seconds, [race.drafted.seconds, race.plain.seconds], race.drafted.done or race.plain.done)
        )
        other = race.plain if runner is race.drafted else race.drafted
        before = other.seconds, list(other.tokens)
        turn(runner)
        assert (other.seconds, other.tokens) == before, "the one without the turn has moved"

    monkeypatch.setattr(racing.Runner, "turn", watched)
    _run(race)
    assert len(clocks) > 20
    assert all(mine == min(both) for mine, both, one_done in clocks if not one_done)


def test_stop_ends_both_within_a_step_and_their_threads(pair: Pair) -> None:
    before = set(threading.enumerate())
    race = Race(pair.model, pair.head, _inputs(1, 9, 3, 2), _settings(200))
    for _ in range(6):
        race.advance()
    seen = len(race.plain.tokens)
    race.close()
    assert race.done
    assert race.stopped
    assert len(race.plain.tokens) <= seen + 1
    assert [token.id for token in race.drafted.trace.tokens] == race.drafted.tokens
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_race_that_never_began_does_nothing(pair: Pair) -> None:
    race = Race(pair.model, pair.head, _inputs(1, 9), _settings(200))
    race.close()
    assert race.drafted.tokens == race.plain.tokens == []


def test_what_generate_raises_is_raised_by_advance(pair: Pair) -> None:
    race = Race(pair.model, pair.head, {"input_ids": torch.tensor([[1], [2]])}, _settings(5))
    with pytest.raises(ValueError, match="one at a time"):
        _run(race)
    race.close()


def test_conversations_on_one_pair_do_not_meet(pair: Pair) -> None:
    """Three sessions at once: each gets the answers to its own questions, and nothing stays on head or target."""
    before = [set(vars(pair.model)), set(vars(pair.head))]
    settings = _settings(16)

    def talk(words: tuple[str, str]) -> list[list[int]]:
        conversation = Conversation()
        for question in words:
            for _ in conversation.ask(question, pair, settings):
                pass
        assert all(turn.verdict is not None and turn.verdict.identical for turn in conversation.turns)
        return [turn.plain for turn in conversation.turns]

    sessions = [(f"w{number} w{number + 9}", f"w{number + 20}") for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(talk, sessions))
    assert at_once == [talk(words) for words in sessions]
    assert [set(vars(pair.model)), set(vars(pair.head))] == before


def test_a_second_question_is_asked_after_the_first(pair: Pair) -> None:
    conversation = Conversation()
    for question in ("w1", "w2"):
        for _ in conversation.ask(question, pair, _settings(8)):
            pass
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": conversation.turns[0].answer}]
    ids = pair.tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": "w2"}], add_generation_prompt=True
    )
    ids = torch.tensor([ids["input_ids"]])
    expected = pair.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert conversation.turns[1].plain == expected


def test_a_chat_that_is_too_long_is_refused(pair: Pair) -> None:
    conversation = Conversation()
    with pytest.raises(ValueError, match="are 1203 tokens and this Space reads at most 1024: start a new chat"):
        next(conversation.ask("w1 " * 1200, pair, _settings(8)))
    assert conversation.turns == []


def test_stop_from_outside_leaves_a_turn_that_is_whole(pair: Pair) -> None:
    conversation = Conversation()
    turns = conversation.ask("w1", pair, _settings(200))
    for _ in range(8):
        next(turns)
    turn = conversation.stop()
    assert turn is conversation.turns[0]
    assert turn.done
    assert turn.stopped
    assert len(turn.plain) < 200
    assert list(turns) == []
    assert turn.verdict is None
    assert conversation.stop() is None


def test_a_turn_that_fails_is_told_and_dropped(pair: Pair) -> None:
    conversation = Conversation()
    with pytest.raises(ValueError, match="`tree_depth` is 0"):
        list(conversation.ask("w1", pair, Settings(8, tree={"tree_depth": 0})))
    assert conversation.turns == []
    assert conversation.race is None
