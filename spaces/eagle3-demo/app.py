"""The demo: a chat in which every answer is given twice, with an EAGLE-3 head and without, and every token says how it
came. Layout and events; what is shown is made in `page`, what is answered in `chat`.

Run it with `python app.py`; a Space does the same.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import page
import torch
from chat import Conversation
from gradio.themes.utils.fonts import LocalFont
from pair import EMBEDDED, Pairs, sentence

from hf_eagle3.default_trees import default_tree
from hf_eagle3.evaluation.timing import Settings

HERE = Path(__file__).resolve().parent
LONGEST = 512  # new tokens
WAITING = 16  # questions in the queue, beyond which a new one is refused
HEADS: list[Any] = [(f"{EMBEDDED} (comes with the demo)", EMBEDDED), "AngelSlim/Qwen3-1.7B_eagle3"]
EXAMPLES = [
    "Write a Python function that checks whether a string is a palindrome.",
    "Explain in a few sentences why the sky is blue.",
    "List five things to pack for a weekend in the mountains, with a reason for each.",
]
LABELS = ["A palindrome in Python", "Why is the sky blue?", "What to pack for the mountains"]
INTRODUCTION = (
    "## EAGLE-3 inside transformers\n"
    "A small draft head guesses several tokens ahead, as a tree; the model checks the whole tree in one forward and "
    "keeps what it would have written itself. Ask something, and read the answer twice: with the head, and by plain "
    "`generate`."
)

PAIRS = Pairs(most_bytes=float(os.environ.get("EAGLE3_DEMO_MAX_GB", "5")) * 1e9)
STOPPED = page.status_html("Stopped.")


# ---------------------------------------------------------------------- what the events do


def begin(question: str) -> tuple[Any, ...]:
    """Takes the question out of its box at once, while others may still be waiting for theirs."""
    waiting = page.status_html("Waiting for a free processor.")
    return question.strip(), "", gr.update(interactive=False), gr.update(interactive=True), waiting


def answer(
    question: str,
    conversation: Conversation,
    temperature: float,
    length: float,
    nodes: float,
    depth: float,
    top_k: float,
    head: str | None,
    target: str,
) -> Iterator[dict[Any, Any]]:
    """Streams both answers; what a user can mend is told in a sentence on the page."""
    knobs = {"num_assistant_tokens": int(nodes), "tree_depth": int(depth), "tree_top_k": int(top_k)}
    if all(getattr(SHAPE, name) == value for name, value in knobs.items()):
        knobs = vars(SHAPE)  # left alone: with where it ends early, too
    try:
        if not question:
            raise ValueError("There is no question yet: type one, or choose an example.")
        yield {notice: page.status_html(f"Loading {head or EMBEDDED}.")}
        pair = PAIRS.get(head or "", target)
        settings = Settings(int(length), round(temperature, 2), tree=knobs)
        told = page.status_html(f"{pair.target_name}, {pair.precision}, with the head {pair.head_name}.")
        yield {earlier: page.earlier_html(conversation.turns), tree: "", notice: told}
        with closing(conversation.ask(question, pair, settings)) as turns:
            for turn in turns:
                yield {live: page.turn_html(turn, conversation.picked)}
        if turn.stopped:  # its end may come here before Gradio has taken this event off, and has the last word then
            told = STOPPED
    except Exception as error:  # told on the page, whatever it is; its trace goes to the log
        traceback.print_exc()
        told = page.notice_html(sentence(error))
    yield {notice: told, conversation_state: conversation, **_at_rest(), **_whole(conversation)}


def stop(conversation: Conversation) -> dict[Any, Any]:
    """Ends the answers that are being written; one that waited its turn is taken out of the queue by Gradio."""
    if conversation.stop() is None:
        return {notice: page.status_html("Stopped before it began."), **_at_rest()}
    return {notice: STOPPED, **_at_rest(), **_whole(conversation)}


def pick(event: gr.EventData, conversation: Conversation) -> str:
    """The tree of the round that was chosen."""
    turn = conversation.turn(event.turn)
    if turn is None or not 0 <= event.round < len(turn.trace.rounds):
        return gr.skip()
    conversation.picked = (turn.number, event.round)
    return page.tree_html(turn, event.round)


def clear(conversation: Conversation) -> dict[Any, Any]:
    """A new chat."""
    conversation.stop()
    conversation.turns, conversation.picked = [], None
    return {live: page.EMPTY, earlier: "", tree: "", notice: "", **_at_rest()}


def _at_rest() -> dict[Any, Any]:
    return {send: gr.update(interactive=True), halt: gr.update(interactive=False)}


def _whole(conversation: Conversation) -> dict[Any, Any]:
    """The turns as they are now. The tree that was picked stays; else that of the last turn's best round is shown."""
    turns, picked = conversation.turns, conversation.picked
    if not turns:
        return {live: page.EMPTY}
    shown = {live: page.turn_html(turns[-1], picked), earlier: page.earlier_html(turns[:-1], picked)}
    best = turns[-1].trace.longest
    return shown if picked or best is None else {**shown, tree: page.tree_html(turns[-1], best)}


# ---------------------------------------------------------------------- the page

SHAPE = default_tree(torch.device(PAIRS.device), PAIRS.dtype)
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
# In the head and not by `css`, which Gradio would scope to what is inside its own container.
STYLE = f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style>"
# The fonts that Gradio brings along, in the weights that it brings whole: nothing is fetched from elsewhere.
THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=(LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
)
# A tree that was asked for is brought into view; one that comes by itself at the end of an answer moves nothing.
REVEAL = """watch('value', () => {
  if (document.activeElement?.closest('[data-round]')) element.scrollIntoView({block: 'nearest', behavior: 'smooth'});
});"""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

with gr.Blocks(title="EAGLE-3 inside transformers", analytics_enabled=False) as demo:
    conversation_state = gr.State(Conversation(), time_to_live=3600)
    asked = gr.State("")
    gr.Markdown(INTRODUCTION, elem_id="introduction")
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            with gr.Row(elem_id="asking"):
                box = gr.Textbox(
                    EXAMPLES[0],
                    label="Question",
                    show_label=False,
                    container=False,
                    placeholder="Ask something",
                    lines=1,
                    max_lines=6,
                    max_length=4000,
                    scale=6,
                    min_width=150,
                    autofocus=True,
                    elem_id="question",
                )
                send = gr.Button("Send", variant="primary", scale=1, min_width=64, elem_id="send")
                halt = gr.Button("Stop", variant="stop", scale=1, min_width=64, interactive=False, elem_id="stop")
            gr.Examples(EXAMPLES, box, label="Or try", example_labels=LABELS, api_visibility="private")
            notice = gr.HTML("", elem_id="notice", apply_default_css=False)
            gr.HTML(page.legend_html(), elem_id="legend", apply_default_css=False)
            live = gr.HTML(page.EMPTY, elem_id="live", apply_default_css=False, js_on_load=SCRIPT)
            tree = gr.HTML("", elem_id="tree", apply_default_css=False, js_on_load=REVEAL)
            earlier = gr.HTML("", elem_id="earlier", apply_default_css=False, js_on_load=SCRIPT)
        with gr.Column(scale=1, min_width=240, elem_id="settings"):
            rejected = gr.Checkbox(False, label="Show rejected drafts", elem_id="show-rejected")
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0 is greedy")
            length = gr.Slider(16, LONGEST, 128, step=16, label="New tokens", elem_id="length")
            with gr.Accordion("Draft tree", open=True):
                nodes = gr.Slider(1, 63, SHAPE.num_assistant_tokens, step=1, label="Draft nodes")
                depth = gr.Slider(1, 10, SHAPE.tree_depth, step=1, label="Depth")
                top_k = gr.Slider(1, 10, SHAPE.tree_top_k, step=1, label="Top-k")
            with gr.Accordion("Head", open=False, elem_id="head-settings"):
                head = gr.Dropdown(
                    HEADS,
                    value=EMBEDDED,
                    label="Head",
                    allow_custom_value=True,
                    info="A Hub id or a folder: type your own",
                    elem_id="head",
                )
                target = gr.Textbox("", label="Target", info="Empty: the one that the head names", elem_id="target")
            fresh = gr.Button("New chat", size="sm", elem_id="fresh")
            gr.Markdown(f"**How it is measured.** {page.MEASURED}", elem_id="measured")

    shown = [live, tree, earlier, notice, send, halt]
    knobs = [temperature, length, nodes, depth, top_k, head, target]
    asking = gr.on(
        [send.click, box.submit], begin, box, [asked, box, send, halt, notice], queue=False, **QUIET
    ).then(
        answer, [asked, conversation_state, *knobs], [*shown, conversation_state], concurrency_limit=1, **QUIET
    )  # fmt: skip
    halt.click(stop, conversation_state, shown, cancels=asking, queue=False, **QUIET)
    fresh.click(clear, conversation_state, shown, cancels=asking, queue=False, **QUIET)
    live.pick(pick, conversation_state, tree, queue=False, **QUIET)
    earlier.pick(pick, conversation_state, tree, queue=False, **QUIET)
    rejected.change(
        None, rejected, None, js="(on) => { document.body.classList.toggle('with-rejected', on); }", **QUIET
    )

if __name__ == "__main__":
    PAIRS.get(EMBEDDED)  # loaded before the first visitor comes
    demo.queue(max_size=WAITING).launch(
        theme=THEME,
        head=STYLE,
        footer_links=["gradio"],
        run_history=False,
        ssr_mode=False,
    )
