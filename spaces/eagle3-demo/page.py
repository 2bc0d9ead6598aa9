"""The page's own pieces as HTML: coloured answers, figures, the picture of a tree.

Everything that a model or a user wrote goes through `text`, and nothing else does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from chat import Turn
from rounds import Token

from hf_eagle3.drawing import draw_tree
from hf_eagle3.evaluation.positions import acceptance_counts

EMPTY = '<p class="empty">The two answers appear here, side by side, token by token.</p>'
DEEPEST = 5  # depths from here on share a colour

MEASURED = (
    "Both answers take turns on the same processor, a fifth of a second each. Each has a clock of its own, which "
    "stands still while the other works, and the turn goes to the one with less time on its clock. The clocks include "
    "reading the prompt; they do not include drawing this page."
)


def text(written: str) -> str:
    """What somebody wrote, as it may stand anywhere in a page."""
    return _inert(escape(written))


def _inert(html: str) -> str:
    """Gradio takes what it shows through two kinds of templates: their signs, as entities, mean nothing to them."""
    for sign in "{}$`\\":
        html = html.replace(sign, f"&#{ord(sign)};")
    return html


def turn_html(turn: Turn, picked: tuple[int, int] | None = None) -> str:
    """A turn: question, both answers, figures."""
    return (
        f'<section class="turn"><p class="question">{text(turn.question)}</p>'
        f'<div class="sides">{_drafted_side(turn, picked)}{_plain_side(turn)}</div>{_figures(turn)}</section>'
    )


def earlier_html(turns: Sequence[Turn], picked: tuple[int, int] | None = None) -> str:
    """Turns that are over, folded, newest first."""
    if not turns:
        return ""
    folded = "".join(
        f"<details><summary>{text(turn.question)}</summary>{turn_html(turn, picked)}</details>" for turn in turns[::-1]
    )
    return f'<h3 class="earlier">Earlier in this chat</h3>{folded}'


def legend_html() -> str:
    """What the colours mean."""
    depths = "".join(
        f'<span class="key"><b class="token d{depth}">{depth}{"+" if depth == DEEPEST else ""}</b></span>'
        for depth in range(1, DEEPEST + 1)
    )
    return (
        '<p class="legend"><span class="key"><b class="token own">abc</b> the target chose it: one forward of the '
        f'target</span><span class="key">drafted by the head and accepted, at depth {depths} no forward of its own'
        '</span><span class="key rejected-key"><b class="rejected">abc</b> drafted and rejected</span></p>'
    )


def status_html(message: str) -> str:
    """What is going on."""
    return f'<p class="status" role="status">{text(message)}</p>'


def notice_html(message: str) -> str:
    """What went wrong, in a sentence."""
    return f'<p class="notice" role="alert">{text(message)}</p>' if message else ""


def tree_html(turn: Turn, number: int) -> str:
    """The draft tree of a round, and a line that says what came of it."""
    round = turn.trace.rounds[number]
    bonus = "cut here" if round.bonus is None else turn.words([round.bonus])[0]
    picture = draw_tree(round.tree, turn.node_words(round), round.path, bonus)
    drafts, accepted, made = round.tree.num_nodes - 1, len(round.path) - 1, len(round.tokens)
    told = (
        f"Round {number + 1} of {len(turn.trace.rounds)}: {_count(drafts, 'draft')}, {accepted} accepted, "
        f"{_count(made, 'token')} from one forward of the target"
    )
    return (
        f'<figure class="tree"><figcaption>{told}</figcaption>'
        f'<div class="picture" role="img" tabindex="0" aria-label="{told}">{_inert(picture)}</div>'
        '<p class="hint">Black is the token that the round began with, green what the target accepted, dashed the '
        "token that it then chose itself, grey what it rejected. A thicker line: the head was surer.</p>"
        "</figure>"
    )


# ---------------------------------------------------------------------- the answers


def _drafted_side(turn: Turn, picked: tuple[int, int] | None) -> str:
    tokens, pieces = turn.trace.tokens, turn.drafted_pieces
    parts = [_token(token, piece) for token, piece in zip(tokens[:1], pieces[:1], strict=True)]
    place = 1
    for number, round in enumerate(turn.trace.rounds):
        end = place + len(round.tokens)
        of_round = list(zip(tokens[place:end], pieces[place:end], strict=True))
        parts.append(_round(turn, number, of_round, picked == (turn.number, number)))
        place = end
    forwards = 1 + len(turn.trace.rounds) if tokens else 0
    return _side(
        "eagle", "With the EAGLE-3 head", "".join(parts), turn.drafted_speed, forwards, len(tokens), turn.drafted_done
    )


def _round(turn: Turn, number: int, tokens: list[tuple[Token, str]], picked: bool) -> str:
    round = turn.trace.rounds[number]
    spelt = [_token(token, piece) for token, piece in tokens]
    rejected = "".join(f'<s class="rejected">{text(_seen(word))}</s>' for word in turn.words(round.rejected))
    spelt.insert(len(round.path) - 1, rejected)
    label = f"Round {number + 1}: {_count(len(round.path) - 1, 'draft')} accepted. Show its tree"
    return (
        f'<span class="round{" picked" if picked else ""}" role="button" tabindex="{-1 if number else 0}" '
        f'data-turn="{turn.number}" data-round="{number}" title="{label}">{"".join(spelt)}</span>'
    )


def _plain_side(turn: Turn) -> str:
    words = "".join(_token(Token(0, None, 0), piece) for piece in turn.plain_pieces)
    count = len(turn.plain)
    return _side("plain", "Plain generate", words, turn.plain_speed, count, count, turn.plain_done)


def _side(kind: str, name: str, words: str, speed: float | None, forwards: int, count: int, done: bool) -> str:
    told = "" if speed is None else f"{speed:.1f} <small>tokens/s</small>"
    cost = f"{_count(count, 'token')} · {_count(forwards, 'target forward')}" if count else "&nbsp;"
    if kind == "eagle" and count:
        cost += " · click a token for its tree"
    cursor = "" if done else '<i class="cursor" aria-hidden="true"></i>'
    return (
        f'<article class="side {kind}" aria-label="{name}"><header><h3>{name}</h3><span class="speed">{told}</span>'
        f'</header><div class="answer">{words}{cursor}</div><footer>{cost}</footer></article>'
    )


def _token(token: Token, piece: str) -> str:
    kind = f"d{min(token.depth, DEEPEST)}" if token.depth else "own"
    return f'<span class="token {kind}">{text(piece)}</span>' if piece else ""


def _seen(word: str) -> str:
    """A rejected token on one line."""
    return word.replace("\n", "⏎")


# ---------------------------------------------------------------------- the figures


def _figures(turn: Turn) -> str:
    ratio = "–" if turn.ratio is None else f"{turn.ratio:.2f}×"
    length = "–" if turn.trace.acceptance_length is None else f"{turn.trace.acceptance_length:.2f}"
    tiles = [
        ("ratio", ratio, "as fast as plain generate" if turn.done else "as fast so far"),
        ("length", length, "acceptance length: tokens a verification, bonus included"),
        ("same", *_agreement(turn)),
    ]
    shown = "".join(
        f'<div class="tile {name}"><strong>{value}</strong><span>{meaning}</span></div>'
        for name, value, meaning in tiles
    )
    return f'<div class="figures">{shown}{_positions(turn)}</div>'


def _agreement(turn: Turn) -> tuple[str, str]:
    verdict = turn.verdict
    if not turn.greedy:
        return "–", "both are sampled, so their tokens differ"
    if verdict is None:
        return "–", "stopped, so not compared" if turn.stopped else "the same tokens? told at the end"
    if verdict.identical:
        return "same", "tokens as plain generate, all of them"
    if verdict.near_tie:
        return (
            f"{verdict.position}",
            f"tokens the same, then a near tie that rounding flips (logit gap {verdict.gap:.2g})",
        )
    return f"{verdict.position}", f"tokens the same, then not: {text(str(verdict))}"


def _positions(turn: Turn) -> str:
    counts = acceptance_counts([turn.trace.counted]) if turn.trace.rounds else []
    rows = "".join(
        f'<tr><th scope="row">depth {depth}</th><td class="bar"><i class="d{min(depth, DEEPEST)}" '
        f'style="width:{100 * accepted / asked:.0f}%"></i></td><td>{100 * accepted / asked:.0f}% '
        f"<small>of {asked}</small></td></tr>"
        for depth, (accepted, asked) in enumerate(counts[:8], start=1)
    )
    return (
        '<div class="tile positions"><table><caption>Drafts accepted, by depth, where the depth before was'
        f"</caption><tbody>{rows}</tbody></table></div>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
