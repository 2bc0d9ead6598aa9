"""What the page shows of a turn: every token, its colour, its round; and nothing that a model wrote as HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import page
import pytest
import torch
from chat import Turn

from hf_eagle3 import DraftTree
from hf_eagle3.evaluation.lossless import Verdict

WORDS = ["zero", " one", " two", "<script>alert(1)</script>", "{{{evil}}}", "${evil}`\\", "\n", "&", '"']


class Words:
    """A tokenizer of nine words."""

    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(WORDS[token] for token in ids)


class Reader(HTMLParser):
    """Text and elements of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.written = ""
        self.open = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1

    def handle_data(self, data: str) -> None:
        self.written += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


@pytest.fixture
def turn() -> Turn:
    """The answer 0 1 2 3 | 4 5, in two rounds, and plain the same."""
    turn = Turn(0, WORDS[3], Words(), greedy=True)
    for token in (0, 1, 2, 3):
        turn.trace.emit(token)
    turn.trace.close_round(
        DraftTree(_row(0, 1, 5, 2), _row(-1, 0, 0, 1), torch.tensor([[0.0, -0.2, -1, -0.3]])), [0, 1, 3]
    )
    for token in (4, 5):
        turn.trace.emit(token)
    turn.trace.close_round(DraftTree(_row(3, 4, 3), _row(-1, 0, 1), torch.tensor([[0.0, -0.2, -1]])), [0, 1])
    turn.plain = [0, 1, 2, 3, 4, 5]
    turn.drafted_seconds, turn.plain_seconds = 1.0, 2.0
    turn.drafted_done = turn.plain_done = True
    return turn


def _row(*numbers: int) -> torch.Tensor:
    return torch.tensor([numbers])


def test_every_token_has_its_colour_and_round(turn: Turn) -> None:
    shown = Reader(page.turn_html(turn, picked=(0, 1)))
    kinds = [attributes["class"] for attributes in shown.of_class("token")]
    assert kinds[:6] == ["token own", "token d1", "token d2", "token own", "token d1", "token own"]
    assert kinds[6:] == ["token own"] * 6
    rounds = shown.of_class("round")
    assert [(entry["data-turn"], entry["data-round"]) for entry in rounds] == [("0", "0"), ("0", "1")]
    assert [entry["tabindex"] for entry in rounds] == ["0", "-1"]
    assert ["picked" in (entry["class"] or "") for entry in rounds] == [False, True]
    assert len(shown.of_class("rejected")) == 1  # the second round's draft 3; the first went to a leaf
    assert shown.open == 0


def test_figures(turn: Turn) -> None:
    turn.verdict = Verdict(identical=True)
    written = Reader(page.turn_html(turn)).written
    for told in ("2.00×", "2.50", "6.0 tokens/s", "3.0 tokens/s", "3 target forwards", "6 target forwards", "same"):
        assert told in written
    assert "depth 1100% of 2" in written
    assert "depth 250% of 2" in written


def test_verdicts(turn: Turn) -> None:
    turn.verdict = Verdict(False, 3, gap=0.03, tolerance=0.1)
    assert "near tie" in page.turn_html(turn)
    turn.verdict = Verdict(False, 3, gap=3.0, tolerance=0.1)
    assert "identical: NO" in page.turn_html(turn)
    turn.verdict, turn.stopped = None, True
    assert "stopped, so not compared" in page.turn_html(turn)
    turn.greedy = False
    assert "sampled" in page.turn_html(turn)


def test_nothing_written_becomes_markup_or_template(turn: Turn) -> None:
    pages = [
        page.turn_html(turn),
        page.earlier_html([turn]),
        page.tree_html(turn, 0),
        page.tree_html(turn, 1),
        page.notice_html(WORDS[3] + WORDS[4] + WORDS[5]),
    ]
    for html in pages:
        shown = Reader(html)
        assert "script" not in {tag for tag, _ in shown.elements}
        assert not re.search(r"[{}$`\\]", html), "Gradio would read it as a template"
    assert WORDS[3] + WORDS[4] + WORDS[5] in Reader(pages[0]).written


def test_an_answer_that_has_not_begun() -> None:
    shown = Reader(page.turn_html(Turn(0, "?", Words(), greedy=True)))
    assert shown.of_class("cursor")
    assert not shown.of_class("round")


def test_a_tree_tells_its_round(turn: Turn) -> None:
    first = page.tree_html(turn, 0)
    assert "Round 1 of 2: 3 drafts, 2 accepted, 3 tokens from one forward of the target" in first
    assert first.count("<text") == 5
