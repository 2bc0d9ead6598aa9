"""`hf-eagle3 train`: from options and a recipe file to a trained head, and what to say about it.

Typer reads the signature, and the first paragraph is the help. The heavy imports stand inside the functions, so that
`hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation.command import Precision, load_pair

if TYPE_CHECKING:
    from .recipe import Recipe
    from .run import Outcome


class Features(str, Enum):
    """Where the target's states come from: `cache`, computed once and kept, or `online`, the target running along."""

    cache = "cache"
    online = "online"


def train(
    output_dir: Annotated[Path, typer.Option(help="Folder of checkpoints and of the finished head.")],
    data: Annotated[str | None, typer.Option(help="Folder or Hub id from `hf-eagle3 data write`.")] = None,
    target: Annotated[str | None, typer.Option(help="Hub id or folder; the embedded SmolLM2 if absent.")] = None,
    init: Annotated[str | None, typer.Option(help="Start from this head; its vocabulary is kept.")] = None,
    lora_rank: Annotated[int | None, typer.Option(min=1, help="Train a LoRA adapter on --init; it is saved.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of any of these and of TrainingArguments; options win.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Updates; takes the place of --epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.0, help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Peak learning rate.")] = None,
    draft_vocab_size: Annotated[int | None, typer.Option(min=1, help="Tokens the head can propose.")] = None,
    boundaries: Annotated[
        list[int] | None, typer.Option(help="A boundary of the target to read; give it several times.")
    ] = None,
    features: Annotated[Features | None, typer.Option(help="Keep the target's states, or run it along.")] = None,
    features_dtype: Annotated[
        str | None, typer.Option(help="Of the kept states: bfloat16, float16, float32; the target's own if absent.")
    ] = None,
    features_dir: Annotated[Path | None, typer.Option(help="Where they are kept; in --output-dir if absent.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="End this sitting after so long; the same command goes on.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and anchors.")] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(
            help="Of the target [its own; the embedded one's: bfloat16 where the device has it, else float32]."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Evaluation questions that --data must stay clear of; refused otherwise.")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="tensorboard, trackio, ...; give it several times for more.")
    ] = None,
    overwrite_output_dir: Annotated[
        bool, typer.Option("--overwrite-output-dir", help="Delete the run that is there, and start anew.")
    ] = False,
) -> None:
    """Trains an EAGLE-3 head for a target on conversations that the target wrote.

    Killed or stopped at any moment, the same command goes on and ends with the same head. Several devices: `accelerate
    launch -m hf_eagle3.cli train ...`. The best checkpoint by acceptance length becomes the head.
    """
    from .recipe import read_recipe, settled
    from .run import clear, train_head

    logging.basicConfig(format="%(message)s")
    given = {
        "data": data, "target": target, "init": init, "lora_rank": lora_rank, "max_steps": max_steps,
        "num_train_epochs": epochs, "learning_rate": learning_rate, "draft_vocab_size": draft_vocab_size,
        "boundaries": boundaries or None, "features": features and features.value,
        "features_dtype": features_dtype, "features_dir": features_dir and str(features_dir),
        "max_minutes": max_minutes, "seed": seed, "dtype": dtype and dtype.value, "report_to": report_to or None,
    }  # fmt: skip
    recipe = read_recipe(config, {name: value for name, value in given.items() if value is not None})
    args = recipe.training_arguments(output_dir)
    logging.getLogger("hf_eagle3").setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
    if overwrite_output_dir:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                clear(output_dir)
    recipe = settled(recipe, args.device, output_dir)
    try:
        model, tokenizer = _target(recipe, args.device)
        if exclude:
            told = _refuse_questions(recipe.data, exclude, tokenizer)
            if args.process_index == 0:
                typer.echo(told)
        with _bar(shown=args.process_index == 0) as progress:
            outcome = train_head(recipe, model, args, progress)
    except FloatingPointError as error:  # what a user can mend is told in a sentence
        raise ValueError(str(error)) from error
    if args.process_index == 0:
        _tell(outcome, recipe, output_dir)


def _target(recipe: Recipe, device: Any) -> tuple[Any, Any]:
    """The target and its tokenizer."""
    dtype = None if recipe.dtype is None else Precision(recipe.dtype)
    model, tokenizer, _ = load_pair(recipe.target, None, dtype, str(device), drafting=False)
    return model, tokenizer


def _refuse_questions(data: str, exclude: list[str], tokenizer: Any) -> str:
    """Refuse to train on conversations that share an n-gram of words with evaluation questions; else say so."""
    from ..data.overlap import Overlap, find_overlaps
    from ..data.store import load_dataset

    overlap = Overlap.from_questions(exclude)
    rows = load_dataset(data)["train"]
    found = find_overlaps((str(tokenizer.decode(row["input_ids"])) for row in rows), overlap)
    if found:
        number, file = found[0]
        raise ValueError(
            f"{len(found)} of the {len(rows)} conversations in {data} share {overlap.n} words in a row with an "
            f"evaluation question, conversation {number} with one of {file}: write the data with the same --exclude, "
            "which leaves them out."
        )
    return f"none of {len(rows)} conversations shares {overlap.n} words in a row with the excluded questions"


def _tell(outcome: Outcome, recipe: Recipe, output_dir: Path) -> None:
    typer.echo(f"draft vocabulary: {outcome.coverage:.1%} of the target's probability on held-out answers")
    if outcome.acceptance_length is not None:
        typer.echo(f"acceptance length on held-out prompts: {outcome.acceptance_length:.2f} (bonus included)")
    if not outcome.finished:
        typer.echo(f"step {outcome.step} of {outcome.of}: the same command goes on from here")
        return
    typer.echo(f"{output_dir}: the {'adapter' if recipe.lora_rank else 'head'} of the best checkpoint")


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Gives `progress(what, done, of)`; a bar for each `what`, gone when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bars = Bars(*columns, console=Console(stderr=True, quiet=not shown), transient=True)
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=of)
            bars.start()
        bars.update(tasks[what], completed=done)
        if done >= of:
            bars.remove_task(tasks.pop(what))
            bars.stop()

    try:
        yield progress
    finally:
        bars.stop()
