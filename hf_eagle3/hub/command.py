"""`hf-eagle3 push`: a head or an adapter of one, from a folder or the Hub, to a repository.

Typer reads the signature, and the first paragraph is the help. The heavy imports stand inside the functions, so that
`hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class EngineLayout(str, Enum):
    """Whose files to push instead of our own."""

    sglang = "sglang"
    vllm = "vllm"
    speculators = "speculators"
    eagle = "eagle"


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
    from .push import lay_out, push_to_hub

    logging.disable_progress_bar()
    wanted = None if layout is None else layout.value
    pushed = head if is_adapter(head) else load_head(head, token=token)
    if dry_run is not None:
        if dry_run.exists() and any(dry_run.iterdir()):
            raise ValueError(f"--dry-run {dry_run} holds files already: name a new or an empty folder.")
        lay_out(pushed, dry_run, layout=wanted, records=records, base=base)
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
        layout=wanted,
        records=records,
        base=base,
    )
    typer.echo(commit.pr_url or commit.commit_url)


__all__ = ["EngineLayout", "push"]
