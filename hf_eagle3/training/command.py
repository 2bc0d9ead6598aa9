"""`hf-eagle3 train`: a target in, a head out. Text, features, vocabulary, training and saving, each resumable.

On a CPU that other work shares, `OMP_WAIT_POLICY=passive` in the environment keeps threads from spinning as they wait.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .. import embedded
from ..configuration_eagle3 import default_boundaries
from ..data.conversations import reshard
from ..data.features import FeatureCache, FeatureExtractor, extract
from ..data.self_prompting import SamplingPlan, write_conversations
from .dataset import choose_vocabulary, feature_scale, split
from .initialisation import fresh_head
from .objective import Objective
from .trainer import HeadTrainer, Progress, Recipe

CHECKPOINT_SECONDS = 300.0
logger = logging.getLogger(__name__)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the finished head.")],
    target: Annotated[str | None, typer.Option(help="Target's id or folder; the embedded SmolLM2 if absent.")] = None,
    answer_tokens: Annotated[int, typer.Option(help="Answer tokens that the target writes of itself.")] = 250_000,
    draft_vocab_size: Annotated[int, typer.Option(help="Tokens that the head can propose.")] = 8192,
    epochs: Annotated[float, typer.Option(help="Passes over the text.")] = Recipe.epochs,
    max_minutes: Annotated[
        float | None, typer.Option(help="End the training after so long, well cooled down.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = Recipe.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of text, split, order and anchors.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Conversations (a shard or a folder) instead of new ones.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of text, features, checkpoint; default: .OUT-work.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Rows decoded at once while the target writes.")] = 64,
) -> None:
    """Train an EAGLE-3 head on text that the target writes itself. Stopped at any point, the same command goes on."""
    if target is None:
        model, tokenizer = embedded.load(dtype=torch.bfloat16)
    else:
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()
        tokenizer = AutoTokenizer.from_pretrained(target)
    measured = make_head(
        model, tokenizer, out, work or out.with_name(f".{out.name}-work"), answer_tokens=answer_tokens, data=data,
        draft_vocab_size=draft_vocab_size, slots=slots,
        recipe=Recipe(epochs=epochs, max_minutes=max_minutes, learning_rate=learning_rate, seed=seed),
    )  # fmt: skip
    typer.echo(
        f"{out}: held-out chain acceptance length {measured['held_out_acceptance_length']:.2f} (bonus included)"
    )


def make_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    work: Path,
    answer_tokens: int = 250_000,
    draft_vocab_size: int = 8192,
    recipe: Recipe | None = None,
    boundaries: list[int] | None = None,
    data: Path | None = None,
    slots: int = 64,
    held_out: int = 96,
) -> dict[str, Any]:
    """What the command does, on a loaded target; returns (and writes to `out/training.json`) what was measured."""
    recipe = recipe or Recipe()
    boundaries = boundaries or default_boundaries(model.config.get_text_config().num_hidden_layers)
    text = work / "text"
    if data is not None:
        reshard(data, text)
    else:
        plan = SamplingPlan(answer_tokens=answer_tokens, seed=recipe.seed)
        with bar("target writes", answer_tokens) as (at, _):
            write_conversations(model, tokenizer, text, plan, slots, FeatureExtractor(model, boundaries), progress=at)
    with bar("features", None) as (at, of):

        def extracted(done: int, shards: int) -> None:
            of(shards)
            at(done)

        extract(model, text, text, boundaries, extracted)
    cache = FeatureCache(text, boundaries)
    train_indices, held_out_indices = split(len(cache), held_out, recipe.seed)
    trainer, coverage = prepare(model, cache, train_indices, draft_vocab_size, boundaries, recipe, work)
    facts = {
        "recipe": asdict(recipe),
        "boundaries": boundaries,
        "conversations": len(cache),
        "answer_tokens": sum(int(cache[index].answers.sum()) for index in range(len(cache))),
        "draft_vocab_size": trainer.objective.head.config.draft_vocab_size,
        "draft_vocabulary_coverage": coverage,
        "held_out_conversations": len(held_out_indices),
    }
    history: list[dict[str, Any]] = []
    last = time.monotonic()

    def every_step(progress: Progress) -> None:
        nonlocal last
        measured = f", held-out {history[-1]['held_out_acceptance_length']:.2f}" if history else ""
        at(int(1000 * trainer.share()), f"loss {progress.loss:.2f}{measured}")
        if time.monotonic() - last > CHECKPOINT_SECONDS:
            trainer.save()
            history.append(publish(trainer, held_out_indices, out))
            last = time.monotonic()

    with bar("training (per mille)", 1000) as (at, _):
        trainer.run(every_step)
    trainer.save()
    facts |= publish(trainer, held_out_indices, out) | {"history": history}
    facts = json.loads(json.dumps(facts))
    temporary = out / ".training.json.tmp"
    temporary.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(temporary, out / "training.json")
    return facts


def publish(trainer: HeadTrainer, held_out: list[int], out: Path) -> dict[str, Any]:
    """Save the head to `out` as it is now, and say how far it has come."""
    trainer.export(out)
    rates = trainer.measure(held_out)
    facts = {
        "optimizer_steps": trainer.progress.step,
        "epochs": trainer.progress.epoch + trainer.progress.position / trainer.per_epoch,
        "training_seconds": trainer.progress.seconds,
        "loss": trainer.progress.loss,
        "held_out_prefix_hits": rates,
        "held_out_acceptance_length": 1 + sum(rates),
    }
    logger.info("%s", facts)
    return facts


def prepare(
    model: PreTrainedModel,
    cache: FeatureCache,
    indices: list[int],
    draft_vocab_size: int,
    boundaries: list[int],
    recipe: Recipe,
    folder: Path | None,
) -> tuple[HeadTrainer, float]:
    """A trainer with a fresh head (or the checkpoint's state), and the share of probability its vocabulary covers."""
    eos = model.config.get_text_config().eos_token_id
    always = [token for token in (eos if isinstance(eos, list) else [eos]) if token is not None]
    vocabulary = choose_vocabulary(cache.mass, draft_vocab_size, always)
    head = fresh_head(model, vocabulary, recipe.seed, boundaries)
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert output is not None
    rows = output.weight[vocabulary].to(torch.bfloat16 if recipe.autocast else torch.float32)
    objective = Objective(head, embeddings.weight, rows, feature_scale(cache, indices, len(boundaries)))
    coverage = float(cache.mass[vocabulary].sum() / cache.mass.sum())
    return HeadTrainer(objective.to(model.device), cache, indices, replace(recipe), folder), coverage


@contextmanager
def bar(name: str, total: int | None) -> Iterator[tuple[Callable[..., None], Callable[[int], None]]]:
    """A rich progress bar; gives `at(done, note)` and `of(total)`."""
    texts = TextColumn("{task.description:>22}"), TextColumn("{task.fields[note]}")
    with Bars(texts[0], BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts[1]) as progress:
        task = progress.add_task(name, total=total, note="")

        def at(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        def of(count: int) -> None:
            progress.update(task, total=count)

        yield at, of
