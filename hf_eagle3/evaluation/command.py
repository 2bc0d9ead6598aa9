"""`hf-eagle3 generate`, `eval`, `figures` and `draw`: from options to objects, from results to lines.

Typer reads the signatures, and the first paragraphs are the help.

The heavy imports stand inside the functions, so that `hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

import textwrap
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Precision(str, Enum):
    """The dtypes that a command can load a pair in; `auto` is the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Target = Annotated[str | None, typer.Option(help="Hub id or folder of the target; else the embedded SmolLM2.")]
Head = Annotated[str | None, typer.Option(help="Hub id or folder of the head; else ours for the embedded target.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Temperatures = Annotated[list[float] | None, typer.Option(help="0 is greedy; give it several times for more. [0]")]
Dtype = Annotated[
    Precision | None,
    typer.Option(
        help="Of both [the target's own; the embedded one's: bfloat16 where the device has it, else float32]."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; else cuda where there is one.")]
Seed = Annotated[int, typer.Option(help="For sampling.")]
Nodes = Annotated[int | None, typer.Option("--num-assistant-tokens", min=1, help="Draft nodes, root not counted.")]
Depth = Annotated[int | None, typer.Option("--tree-depth", min=1, help="Drafted levels.")]
TopK = Annotated[int | None, typer.Option("--tree-top-k", min=1, help="Children of a node, nodes of a level.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--assistant-confidence-threshold",
        min=0.0,
        max=1.0,
        help="End the tree where the nodes of a level hold less of the draft's probability than this.",
    ),
]


def generate(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Each is a chat of its own.")],
    target: Target = None,
    head: Head = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without a head.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Set plain generate beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Temperature = 0.0,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = 0,
    num_assistant_tokens: Nodes = None,
    tree_depth: Depth = None,
    tree_top_k: TopK = None,
    assistant_confidence_threshold: Threshold = None,
) -> None:
    """Answers questions with a draft head and says what it took.

    The embedded pair is loaded in bfloat16 where the device multiplies in it by itself, else in float32; any other
    target in its own dtype.
    """
    from rich.console import Console

    from .answer import Answer, Speaker
    from .timing import Settings

    if plain and compare:
        raise ValueError("--plain and --compare were both given: --compare sets plain generate beside the head's run.")
    console = Console()
    knobs = _tree(num_assistant_tokens, tree_depth, tree_top_k, assistant_confidence_threshold)
    settings = Settings(max_new_tokens, temperature, seed, knobs)
    pair = load_pair(target, head, dtype, device, drafting=not plain)
    speaker = Speaker(*pair, settings, console)
    answers: list[Answer] = [speaker.answer(question, compare) for question in questions]
    ratios = [answer.ratio for answer in answers if answer.ratio is not None]
    if len(ratios) > 1:
        console.rule(style="dim")
        console.print(f"{len(ratios)} questions · mean ratio to plain generate {sum(ratios) / len(ratios):.2f}")


def evaluate(
    questions: Annotated[
        list[str],
        typer.Option(
            help="A folder of .jsonl files (one object with `turns` a line), such a file, or a data set as in "
            "openai/gsm8k/main:test; give it several times for more."
        ),
    ],
    files: Annotated[
        list[str] | None, typer.Option(help="Of a folder only this file; give it several times for more.")
    ] = None,
    questions_split: Annotated[str | None, typer.Option(help="Of data sets; that of the usual ones is known.")] = None,
    questions_column: Annotated[str | None, typer.Option(help="Of data sets, what is asked; likewise.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Compare tokens in float32, all questions.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each file [10; --lossless: all].")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=2, help="[128; --lossless: 64]")] = None,
    lookup: Annotated[bool, typer.Option("--lookup", help="Also time transformers' prompt lookup.")] = False,
    shares: Annotated[bool, typer.Option("--shares/--no-shares", help="Measure where the time goes, apart.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the figures and their provenance here.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Draw the figures into this folder, as SVG.")] = None,
    label: Annotated[str | None, typer.Option(help="What figures call this head; else its name.")] = None,
    target: Target = None,
    head: Head = None,
    temperature: Temperatures = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = 0,
    num_assistant_tokens: Nodes = None,
    tree_depth: Depth = None,
    tree_top_k: TopK = None,
    assistant_confidence_threshold: Threshold = None,
) -> None:
    """Measures acceptance length and the wall-clock ratio to plain generate, file by file; or checks the tokens.

    Every question is answered plain and drafted, one right after the other, in turns; above temperature 0 both draw
    from all of the target's distribution, without top-k or top-p. The embedded pair is loaded in bfloat16 where the
    device multiplies in it by itself, else and with --lossless in float32. Acceptance by position is that of the
    tree's levels; --tree-top-k 1 drafts the papers' chain. Shares of time count the prompt's forward as the target's.
    With --json a run that was stopped is taken up again by the same command, where it was.
    Ends with status 1 if a drafted answer differs from the plain one by more than rounding.
    """
    from rich.console import Console

    from .figures import check_drawing
    from .measurement import Measurement
    from .question_sources import gather_questions
    from .report import check_writable
    from .timing import WHOLE_DISTRIBUTION, Settings

    temperatures = list(dict.fromkeys(temperature or [0.0]))
    if lossless and any(temperatures):
        raise ValueError(f"--lossless compares tokens and needs temperature 0, not {max(temperatures)}.")
    if figures is not None:
        check_drawing()
    if json is not None:
        check_writable(json)
    length = max_new_tokens or (64 if lossless else 128)
    knobs = _tree(num_assistant_tokens, tree_depth, tree_top_k, assistant_confidence_threshold)
    # All of them before anything is measured: a wrong one is told at once.
    settings = [Settings(length, each, seed, knobs, WHOLE_DISTRIBUTION) for each in temperatures]
    asked = gather_questions(questions, files, limit if limit or lossless else 10, questions_split, questions_column)
    precision = dtype or (Precision.float32 if lossless else None)
    pair = load_pair(target, head, precision, device, drafting=True)
    measurement = Measurement(
        pair, asked, settings, Console(), json=json, lossless=lossless, lookup=lookup, shares=shares, label=label
    )
    measurement.run()
    measurement.write(figures)
    if measurement.wrong:
        raise typer.Exit(1)


def redraw(
    records: Annotated[
        list[str], typer.Argument(metavar="RECORD...", help="JSON of `eval` or `sweep`, or a trained head's folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the SVG files.")] = Path("figures"),
) -> None:
    """Draws the figures of records that are there, without running anything.

    Records of one label that were trained on different numbers of tokens make one line against training tokens.
    """
    from .figures import draw_all
    from .records import read_records

    for path in draw_all(read_records(records), out):
        typer.echo(str(path))


def draw(
    question: Annotated[str, typer.Argument(help="Asked as a chat.")],
    out: Annotated[Path, typer.Option(help="The SVG file to write.")] = Path("tree.svg"),
    round: Annotated[int | None, typer.Option(min=1, help="Which verification; else the longest acceptance.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 64,
    target: Target = None,
    head: Head = None,
    dtype: Dtype = None,
    device: Device = None,
    num_assistant_tokens: Nodes = None,
    tree_depth: Depth = None,
    tree_top_k: TopK = None,
    assistant_confidence_threshold: Threshold = None,
) -> None:
    """Draws one draft tree of a real answer, with the path that the target accepted, as an SVG picture."""
    from . import picture

    model, tokenizer, drafting = load_pair(target, head, dtype, device, drafting=True)
    knobs = _tree(num_assistant_tokens, tree_depth, tree_top_k, assistant_confidence_threshold)
    rounds = picture.observe(model, tokenizer, drafting, question, max_new_tokens, knobs)
    if round is not None and round > len(rounds):
        raise ValueError(f"--round {round} was given, but the answer took {len(rounds)} verifications; give fewer.")
    chosen = rounds[round - 1] if round else max(rounds, key=lambda seen: len(seen.path))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture.svg(chosen, tokenizer), encoding="utf-8")
    typer.echo(f"{out}: {chosen.tree.num_nodes - 1} draft nodes, {len(chosen.path)} tokens from one target forward")


def load_pair(
    target: str | None, head: str | None, dtype: Precision | None, device: str | None, drafting: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PreTrainedModel | None]:
    """Target, tokenizer and head (None unless `drafting`), on `device`; without a `dtype` the embedded target in
    [`usual_dtype`], another in its checkpoint's own.

    Raises:
        ValueError: a target of the user's own is to draft, and no head was named for it; or `device` cannot be used.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from hf_eagle3 import embedded, load_head
    from hf_eagle3.native_products import usual_dtype

    own_target = target not in (None, embedded.TARGET_ID)
    if own_target and drafting and head is None:
        raise ValueError(f"Target {target} came without a head: give --head with its Hub id or folder, or --plain.")
    logging.disable_progress_bar()
    place = _place(device)
    precision: Any = dtype.value if dtype else "auto" if target else usual_dtype(place)
    if target is None:
        model, tokenizer = embedded.load(precision, place)
    else:
        named: Any = AutoModelForCausalLM.from_pretrained(target, dtype=precision)
        model = named.to(place).eval()
        tokenizer = AutoTokenizer.from_pretrained(target)
    if not drafting:
        return model, tokenizer, None
    if head is None:
        return model, tokenizer, embedded.load_head(model.dtype, place)
    return model, tokenizer, load_head(head, dtype=model.dtype).to(place)


def _place(device: str | None) -> str:
    """The device to use; one that was given is tried, before anything is loaded for it."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's ways to say unknown, not built in, not here
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        why = textwrap.shorten(str(error), 80, placeholder=" ...")
        raise ValueError(
            f"--device {device!r} was given, which cannot be used here ({why}): give {' or '.join(there)}."
        ) from error
    return device


def _tree(nodes: int | None, depth: int | None, top_k: int | None, threshold: float | None) -> dict[str, float]:
    """The knobs that were given; the head's own hold for the others."""
    knobs: dict[str, float | None] = {"num_assistant_tokens": nodes, "tree_depth": depth, "tree_top_k": top_k}
    knobs["assistant_confidence_threshold"] = threshold
    return {name: value for name, value in knobs.items() if value is not None}
