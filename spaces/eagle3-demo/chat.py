"""A conversation: turns that were asked and what came of each. One session, one conversation; nothing is shared.

Knows tokens and text; nothing of pages.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pair import Pair
from race import Race
from rounds import Round, Trace
from spelling import Spelling

from hf_eagle3.evaluation.lossless import Verdict, compare
from hf_eagle3.evaluation.timing import Settings

MOST_TURNS = 6
MOST_PROMPT_TOKENS = 1024


class Turn:
    """One question and its two answers, as far as they have come.

    Args:
        number: of the turn in its conversation.
        question: as it was asked.
        tokenizer: of the target.
        greedy: whether both answers should be the same.
    """

    def __init__(self, number: int, question: str, tokenizer: Any, greedy: bool) -> None:
        self.number, self.question, self.greedy = number, question, greedy
        self.trace = Trace()
        self.plain: list[int] = []
        self.drafted_seconds = self.plain_seconds = 0.0
        self.drafted_done = self.plain_done = self.stopped = False
        self.verdict: Verdict | None = None
        self._tokenizer = tokenizer
        self._drafted_text, self._plain_text = Spelling(tokenizer), Spelling(tokenizer)

    def follow(self, race: Race) -> None:
        """Take over what the race has come to."""
        self.trace, self.plain = race.drafted.trace, race.plain.tokens
        self.drafted_seconds, self.plain_seconds = race.drafted.seconds, race.plain.seconds
        self.drafted_done, self.plain_done = race.drafted.done, race.plain.done
        self.stopped = race.stopped

    @property
    def done(self) -> bool:
        return self.drafted_done and self.plain_done

    @property
    def drafted_pieces(self) -> list[str]:
        """The text of each token of the drafted answer."""
        return self._drafted_text.spell([token.id for token in self.trace.tokens])

    @property
    def plain_pieces(self) -> list[str]:
        """The text of each token of the plain answer."""
        return self._plain_text.spell(self.plain)

    @property
    def answer(self) -> str:
        """The drafted answer as text, without marks."""
        return self._tokenizer.decode([token.id for token in self.trace.tokens], skip_special_tokens=True)

    @property
    def drafted_speed(self) -> float | None:
        """Tokens per second of its own clock; None before the first."""
        return len(self.trace.tokens) / self.drafted_seconds if self.drafted_seconds else None

    @property
    def plain_speed(self) -> float | None:
        return len(self.plain) / self.plain_seconds if self.plain_seconds else None

    @property
    def ratio(self) -> float | None:
        """Speed of the drafted answer over that of the plain one."""
        if not self.drafted_speed or not self.plain_speed:
            return None
        return self.drafted_speed / self.plain_speed

    def words(self, ids: list[int]) -> list[str]:
        """Tokens as text, each by itself."""
        return [self._tokenizer.decode([token]) for token in ids]

    def node_words(self, round: Round) -> list[str]:
        return self.words(round.tree.tokens[0].tolist())


class Conversation:
    """The turns of one session."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.race: Race | None = None
        self.picked: tuple[int, int] | None = None  # turn and round whose tree is shown
        self._asked = 0

    def ask(self, question: str, pair: Pair, settings: Settings) -> Generator[Turn]:
        """Answer both ways, and yield the turn as it grows; closing the iterator ends both answers.

        Raises:
            ValueError: the chat has grown too long, or the pair cannot do what is asked; the turn is dropped then.
        """
        inputs = self._encode(question, pair)
        race = self.race = Race(pair.model, pair.head, inputs, settings)
        turn = Turn(self._asked, question, pair.tokenizer, settings.greedy)
        self._asked += 1
        self.turns = [*self.turns, turn][-MOST_TURNS:]
        self.picked = None
        try:
            yield turn
            while race.advance():
                turn.follow(race)
                yield turn
        except Exception:
            self.turns = [kept for kept in self.turns if kept is not turn]
            raise
        finally:
            race.close()
            turn.follow(race)
            self.race = None
        if turn.greedy and not turn.stopped:
            drafted = [token.id for token in turn.trace.tokens]
            turn.verdict = compare(pair.model, inputs["input_ids"], turn.plain, drafted)
            yield turn

    def stop(self) -> Turn | None:
        """From any thread: end the answers that are being written, and wait until they have.

        Returns:
            their turn; None if none was being written.
        """
        race = self.race
        if race is None:
            return None
        race.close()
        self.turns[-1].follow(race)
        return self.turns[-1]

    def turn(self, number: int) -> Turn | None:
        return next((turn for turn in self.turns if turn.number == number), None)

    def _encode(self, question: str, pair: Pair) -> dict[str, Any]:
        """The chat so far and the question, as the target's template writes them; without one, the question alone."""
        messages = []
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        messages.append({"role": "user", "content": question})
        if pair.tokenizer.chat_template:
            encoded = pair.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            encoded = pair.tokenizer(question, return_tensors="pt")
        length = encoded["input_ids"].shape[1]
        if length > MOST_PROMPT_TOKENS:
            raise ValueError(
                f"Chat and question are {length} tokens and this Space reads at most {MOST_PROMPT_TOKENS}: start a "
                "new chat, or ask a shorter question."
            )
        return {name: encoded[name].to(pair.model.device) for name in ("input_ids", "attention_mask")}
