"""`hf-eagle3 card`: from options to calls. Typer reads the signatures, and the first paragraphs are the help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    folder: Annotated[Path, typer.Argument(help="Of a head: config.json, and what there is of training, evaluation.")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether it is up to date (status 1: no).")] = False,
) -> None:
    """Renders a head's model card, README.md, from the files beside it.

    Reads config.json, the weights' header, training.json, recipe.yaml, evaluation/*.json (what `eval --json` and
    `sweep --json` write) and card.yaml (target, licence, languages and whatever else no file can tell). No number is
    typed: each comes from one of them, and what none tells is left out.
    """
    from .cards import CARD, is_current, write_card

    if not check:
        typer.echo(str(write_card(folder)))
    elif not is_current(folder):
        typer.echo(f"{folder / CARD} is not what the files beside it say: run `hf-eagle3 card {folder}`.", err=True)
        raise typer.Exit(1)
