"""`hf-eagle3 doctor`: from options to objects, from a diagnosis to lines and files.

Typer reads the signature, and the first paragraph is the help. The heavy imports stand inside the function.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_eagle3.evaluation.command import Device, Dtype

if TYPE_CHECKING:
    from .examination import Examination

# Faults that are gone once a recommended reading is written; others stay, whatever is written.
MENDED_BY_A_READING = ("d2t", "t2d", "boundaries", "acceptance")


def doctor(
    head: Annotated[
        str | None, typer.Argument(help="Hub id or folder of the head; else ours for the embedded target.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(help="Hub id or folder of the target; else the embedded SmolLM2.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Store what is recommended in the head's folder.")] = False,
    write_to: Annotated[Path | None, typer.Option(help="Save the mended head in this new folder instead.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the diagnosis here.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a head on the Hub.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Finds what is wrong between a head and a target, and which reading of the head drafts best.

    Checks files and configs, then tries other conventions (boundary ids, rotary base, norms, vocabulary map) on the
    target's own answers. Ends with status 1 if something is to be mended and neither --write nor --write-to did it.
    """
    from rich.console import Console

    from hf_eagle3 import embedded
    from hf_eagle3.evaluation.command import load_pair
    from hf_eagle3.evaluation.report import check_writable, write_json

    from .examination import Examination
    from .prescription import check_in_place, check_new_folder
    from .report import rendered

    source = str(embedded.head_folder()) if head is None else head
    if write and write_to is not None:
        raise ValueError("--write and --write-to were both given, and --write means the head's own folder; choose.")
    if write:
        check_in_place(source)
    if write_to is not None:
        check_new_folder(write_to)
    if json is not None:
        check_writable(json)
    console = Console()
    model, tokenizer, _ = load_pair(target, None, dtype, device, drafting=False)
    with console.status("opening") as status:
        examination = Examination(source, model, tokenizer, revision=revision, progress=status.update)
        diagnosis = examination.run()
    for part in rendered(diagnosis):
        console.print(part)
    if json is not None:
        write_json(json, diagnosis.to_dict())
    mended = (write or write_to is not None) and _write(examination, write_to, console)
    left = [fault for fault in diagnosis.faults if not mended or fault.check not in MENDED_BY_A_READING]
    if left or not (diagnosis.healthy or mended):
        raise typer.Exit(1)


def _write(examination: Examination, folder: Path | None, console: object) -> bool:
    """Write the recommendation; whether there was one."""
    from ..loading import load_head
    from .prescription import write_in_place, write_new

    if not examination.reading:
        typer.echo("Nothing is recommended, so nothing was written.")
        return False
    subject, reading = examination.subject, examination.reading
    told = write_in_place(subject, reading) if folder is None else write_new(subject, reading, folder)
    for line in told:
        typer.echo(f"wrote {line}")
    load_head(subject.source if folder is None else folder)  # or else the sentence that says what still is wrong
    return True
