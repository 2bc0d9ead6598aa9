"""`hf-eagle3 card`, `push` and `export`: from options to calls.

Typer reads the signatures, and the first paragraphs are the help. The heavy imports stand inside the functions, so
that `hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class EngineLayout(str, Enum):
    """The layouts of other programs."""

    sglang = "sglang"
    vllm = "vllm"
    speculators = "speculators"
    eagle = "eagle"


ForTarget = Annotated[
    str | None, typer.Option(help="Hub id or folder of the target; speculators needs it, for its embeddings.")
]
EngineVersion = Annotated[
    str | None, typer.Option(help="Of what will load it: allows what older versions would pass over in silence.")
]


def card(
    folder: Annotated[Path, typer.Argument(help="Of a head: config.json, and what there is of training, evaluation.")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether it is up to date (status 1: no).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that somebody wrote by hand.")] = False,
) -> None:
    """Renders a head's model card, README.md, from the files beside it.

    Reads config.json, the weights' header, training.json, recipe.yaml, evaluation/*.json (what `eval --json` and
    `sweep --json` write) and card.yaml (target, licence, languages and whatever else no file can tell). No number is
    typed: each comes from one of them, and what none tells is left out.
    """
    from .cards import CARD, is_by_hand, is_current, write_card

    if not check and not force and is_by_hand(folder):
        raise ValueError(
            f"{folder / CARD} was written by hand, and rendering it would replace it: put its text into card.yaml "
            "(docs/training.md), or pass --force."
        )
    if not check:
        typer.echo(str(write_card(folder)))
    elif not is_current(folder):
        typer.echo(f"{folder / CARD} is not what the files beside it say: run `hf-eagle3 card {folder}`.", err=True)
        raise typer.Exit(1)


def push(
    head: Annotated[str, typer.Argument(help="Folder or Hub id of a head, or folder of an adapter.")],
    repository: Annotated[str, typer.Argument(help="Where it goes: owner/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is created.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="One that may write; that of `hf auth login` if absent.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it is not there.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    layout: Annotated[EngineLayout | None, typer.Option(help="Push what this engine loads instead of ours.")] = None,
    target: ForTarget = None,
    engine_version: EngineVersion = None,
    records: Annotated[
        Path | None, typer.Option(help="Folder of training.json, recipe and evaluations; HEAD's own if absent.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Hub id of the head that an adapter belongs to.")] = None,
    dry_run: Annotated[Path | None, typer.Option(help="Write the repository into this folder; push nothing.")] = None,
) -> None:
    """Uploads a head as a repository that loads in one line, with its card, its records and the code for
    `generate(custom_generate=...)`.

    All of it is one commit. Cut off, the same command sends what is missing.
    """
    from transformers.utils import logging

    from ..loading import load_head
    from .adapters import is_adapter
    from .push import lay_out, push_to_hub, valid_repo_id

    logging.disable_progress_bar()
    wanted: dict[str, Any] = {
        "layout": None if layout is None else layout.value,
        "target": target,
        "engine_version": engine_version,
        "records": records,
        "base": base,
    }
    pushed = head if is_adapter(head) else load_head(head, token=token)
    valid_repo_id(repository)
    if dry_run is not None:
        if dry_run.exists() and any(dry_run.iterdir()):
            raise ValueError(f"--dry-run {dry_run} holds files already: name a new or an empty folder.")
        lay_out(pushed, dry_run, repo_id=repository, **wanted)
        for path in sorted(path for path in dry_run.rglob("*") if path.is_file()):
            typer.echo(f"{path.relative_to(dry_run)}  {path.stat().st_size:,} bytes")
        return
    commit = push_to_hub(
        pushed,
        repository,
        private=private,
        token=token,
        revision=revision,
        commit_message=message,
        create_pr=create_pr,
        **wanted,
    )
    typer.echo(commit.pr_url or commit.commit_url)


def export(
    head: Annotated[str, typer.Argument(help="Hub id or folder of the head, in any layout that is known.")],
    layout: Annotated[EngineLayout, typer.Option(help="Who is to load it; eagle is the official program.")],
    out: Annotated[Path, typer.Option(help="Folder to write; other files in it are left alone.")],
    target: ForTarget = None,
    engine_version: EngineVersion = None,
) -> None:
    """Writes a head as SGLang, vLLM, speculators or the official EAGLE program load it.

    Refused is what the layout cannot say, rather than written to be misread; docs/serving.md has the table.
    """
    from ..loading import load_head
    from .export import export_head, serve_command

    loaded = load_head(head)
    folder = export_head(loaded, out, layout.value, target=target, engine_version=engine_version)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")) / 2**20
    dtype = str(loaded.dtype).removeprefix("torch.")
    typer.echo(f"{folder}: {layout.value} layout, {dtype}, {size:.1f} MiB\nServe it with:")
    typer.echo("  " + serve_command(loaded, layout.value, folder, target or "TARGET"))


__all__ = ["EngineLayout", "card", "export", "push"]
