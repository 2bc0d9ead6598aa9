"""`hf-eagle3 export`: a head in the layout of a serving engine, and the command that serves it.

Typer reads the signature, and the first paragraph is the help. The heavy imports stand inside the function, so that
`hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class ExportTo(str, Enum):
    """The layouts of other programs."""

    sglang = "sglang"
    vllm = "vllm"
    speculators = "speculators"
    eagle = "eagle"


def export(
    head: Annotated[str, typer.Argument(help="Hub id or folder of the head, in any layout that is known.")],
    layout: Annotated[ExportTo, typer.Option(help="Who is to load it; eagle is the official program.")],
    out: Annotated[Path, typer.Option(help="Folder to write; other files in it are left alone.")],
    target: Annotated[
        str | None, typer.Option(help="Hub id or folder of the target; speculators needs it, for its embeddings.")
    ] = None,
    engine_version: Annotated[
        str | None, typer.Option(help="Of what will load it: allows what older versions would pass over in silence.")
    ] = None,
) -> None:
    """Writes a head as SGLang, vLLM, speculators or the official EAGLE program load it.

    Refused is what the layout cannot say, rather than written to be misread; docs/serving.md has the table.
    """
    from ..modeling_eagle3 import load_head
    from .export import export_head, serve_command

    loaded = load_head(head)
    folder = export_head(loaded, out, layout.value, target=target, engine_version=engine_version)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")) / 2**20
    dtype = str(loaded.dtype).removeprefix("torch.")
    typer.echo(f"{folder}: {layout.value} layout, {dtype}, {size:.1f} MiB\nServe it with:")
    typer.echo("  " + serve_command(loaded, layout.value, folder, target or "TARGET"))
