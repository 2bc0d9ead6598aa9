"""The command line: measure, then show, write or draw what was measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import cases, machine, record, tables
from .bars import bars
from .cases import Case
from .floors import device_of
from .leaf import submodule
from .measurement import WAYS, Protocol, measure
from .record import Record
from .ways import KERNEL

BY_NAME = {make().name: make for make in WAYS}
_DRY = Protocol(rounds=3, patience=120.0, lap_seconds=1e-4)
_QUICK = Protocol(rounds=5, patience=25.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 if a bar was missed, or what was asked for cannot be done."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (ValueError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def run_measure(given: argparse.Namespace) -> int:
    device = _device(given)
    record.check_writable(given.json)
    kept = Record(given.json, machine.describe(device, given.dry_run))
    hardware = device_of(device)
    wanted = chosen_cases(given)
    print(
        f"{hardware.name}: {hardware.bandwidth / 1e9:.0f} GB/s, {hardware.peak / 1e12:.2f} TFLOP/s ({hardware.source})"
    )
    ways = given.ways or list(BY_NAME)
    for case in wanted:
        if set(ways) <= set(kept.cases.get(case.key, {}).get("ways", ())):
            print(f"{case.key}: there already", flush=True)
            continue
        print(case.key, flush=True)
        before = machine.clocks(device)
        try:
            with torch.no_grad():
                result = measure(case, hardware, device, _protocol(given), [BY_NAME[name] for name in ways])
        except torch.OutOfMemoryError:
            print(f"{case.key}: more memory is needed than the device has left", file=sys.stderr)
            continue
        kept.add(case.key, result | {"hardware": vars(hardware), "clocks": [before, machine.clocks(device)]})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return _finish(kept, wanted, given.dry_run)


def _finish(kept: Record, wanted: Sequence[Case], dry_run: bool) -> int:
    """Shows the record; 0 if the kernel was right in all that was wanted, and no bar that was measured is missed."""
    reached = bars(kept.cases)
    tables.show(kept.content, [] if dry_run else reached)
    ways = [kept.cases.get(case.key, {}).get("ways", {}) for case in wanted]
    right = all(of_case.get(KERNEL, {}).get("status") == "timed" for of_case in ways)
    return int(not right or (not dry_run and any(bar.verdict == "MISSED" for bar in reached)))


def _device(given: argparse.Namespace) -> torch.device:
    """The CPU in a dry run; else a CUDA device that is there."""
    if given.dry_run:
        return torch.device("cpu")
    try:
        device = torch.device(given.device)
    except RuntimeError:
        raise ValueError(f"--device {given.device} names no device; say cuda, or cuda:1.") from None
    if device.type != "cuda":
        raise ValueError(f"--device {device} has no kernel to time; give a CUDA device, or --dry-run on the CPU.")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"No device {device} is there to be timed; give --dry-run to go through it all on the CPU.")
    return device


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    """Those of `--quick` or `--dry-run`, every combination of the lists that are given, or the whole sheet."""
    lists = (given.shapes, given.contexts, given.nodes, given.batches, given.dtypes)
    if any(lists):
        shapes = [cases.SHAPES[name] for name in given.shapes or [cases.LLAMA.name]]
        found = cases.cross(
            shapes,
            given.contexts or cases.CONTEXTS,
            given.nodes or [60],
            given.batches or [1],
            given.dtypes or ["bf16"],
        )
    else:
        found = cases.DRY if given.dry_run else cases.QUICK if given.quick else cases.sheet()
    return found


def _protocol(given: argparse.Namespace) -> Protocol:
    protocol = _DRY if given.dry_run else _QUICK if given.quick else Protocol()
    return protocol if given.rounds is None else Protocol(given.rounds, protocol.patience, protocol.lap_seconds)


def run_show(given: argparse.Namespace) -> int:
    content = record.read(given.record)
    tables.show(content, [] if content["machine"]["dry_run"] else bars(content["cases"]))
    return 0


def run_markdown(given: argparse.Namespace) -> int:
    text = tables.markdown(record.read(given.record))
    if given.out is None:
        print(text, end="")
    else:
        record.write_whole(given.out, text)
    return 0


def run_figure(given: argparse.Namespace) -> int:
    from .figure import draw

    print(draw(record.read(given.record), given.out))
    return 0


def run_tune(given: argparse.Namespace) -> int:
    from .tune import tune

    device = _device(given)
    record.check_writable(given.out)
    for dtype in given.dtypes:
        for dim in given.dims:
            tune(given.out, device, dim, dtype, given.seconds)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _head_dim(text: str) -> int:
    widest = submodule("op").WIDEST_HEAD
    if (dim := _positive(text)) > widest:
        raise argparse.ArgumentTypeError(f"heads may be up to {widest} wide, and {text} is wider")
    return dim


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Times the tree-attention kernel beside what there is."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_measure(commands.add_parser("measure", help="check and time cases, all of the sheet unless some are named"))
    for name, run, told in (
        ("show", run_show, "the table of a record"),
        ("markdown", run_markdown, "the table of a record, for a page"),
        ("figure", run_figure, "the figure of a record, as SVG"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("record", type=Path, metavar="JSON")
        if run is not run_show:
            command.add_argument("--out", type=Path, required=run is run_figure, help="file to write")
        command.set_defaults(run=run)
    _add_tune(
        commands.add_parser("tune", help="look for the fastest tiles on this device, and write the table of them")
    )
    return parser


def _add_measure(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, help="the record; cases that it holds already are left out")
    command.add_argument(
        "--quick", action="store_true", help="the three cases that the promises are about, in minutes"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="tiny shapes on the CPU: checks everything, times nothing"
    )
    command.add_argument("--device", default="cuda")
    command.add_argument("--rounds", type=_positive, help="figures of each way (5)")
    command.add_argument("--ways", nargs="+", choices=list(BY_NAME), metavar="WAY", help=", ".join(BY_NAME))
    command.add_argument("--shapes", nargs="+", choices=list(cases.SHAPES))
    command.add_argument("--contexts", nargs="+", type=int)
    command.add_argument("--nodes", nargs="+", type=int)
    command.add_argument("--batches", nargs="+", type=int)
    command.add_argument("--dtypes", nargs="+", choices=list(cases.DTYPES))
    command.set_defaults(run=run_measure)


def _add_tune(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, required=True, help="the table; name it in TREE_ATTENTION_TUNING to use it"
    )
    command.add_argument("--dims", nargs="+", type=_head_dim, default=[128], help="widths of heads (128)")
    command.add_argument("--dtypes", nargs="+", choices=list(cases.DTYPES), default=["bf16"])
    command.add_argument("--seconds", type=float, default=240.0, help="after which the best so far stands")
    command.add_argument("--device", default="cuda")
    command.add_argument(
        "--dry-run", action="store_true", help="two candidates, tiny shapes, on the CPU: times nothing"
    )
    command.set_defaults(run=run_tune)
