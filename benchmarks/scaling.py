"""Acceptance length against training data, with EAGLE-3's objective and with EAGLE-1's: one head for each share of the
data, all of equal steps.

    python benchmarks/scaling.py --data DATA --recipe RECIPE --steps 2000 --out WORK \
        --json benchmarks/results/cpu-scaling.json --figure docs/scaling.svg

The shares of a seed are nested. Recipe, steps, batch tokens, draft vocabulary, target and the prompts that are
measured on are the same for all; the target's states are computed once. Killed or stopped, the same command goes on.
`--draw` makes table and figure of a record again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from scaling_dry import DRY_FIELDS, write_tiny_data
from scaling_figure import draw, scaling_table, summary
from scaling_runs import Asked, HeldOut, plan, trained_and_measured
from training_runs import given_fields, length_fields, public
from transformers.utils.logging import disable_progress_bar

from hf_eagle3.data.store import load_dataset
from hf_eagle3.evaluation.canvas import check_drawing
from hf_eagle3.evaluation.command import Precision, load_pair
from hf_eagle3.evaluation.report import check_writable, provenance, write_json
from hf_eagle3.training.recipe import read_recipe

SHARES = ["1/16", "1/8", "1/4", "1/2", "1"]


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The record; in the file as well, after every head.

    Raises:
        ValueError, OSError: the data, the recipe or the folder do not fit; FloatingPointError: a loss is no longer
            finite.
    """
    disable_progress_bar()  # transformers draws one for each file that it reads or writes
    target, fields = _given(given)
    base = read_recipe(given.recipe, fields)
    steps = given.steps or base.arguments.get("max_steps", 0)
    if steps < 1:
        raise ValueError("All heads are trained for equal steps: give --steps, or max_steps in the recipe.")
    fields |= length_fields(steps, given.evaluations or (2 if given.dry_run else 4))
    if target is None:
        dtype = None if base.dtype is None else Precision(base.dtype)
        target = load_pair(base.target, None, dtype, given.device, drafting=False)[0]
        if base.target is None:  # its dtype goes by the machine: written down, it is not changed half-way by another
            fields["dtype"] = str(target.dtype).removeprefix("torch.")
    asked = plan(given.shares, given.seeds, given.recipe, fields, given_fields(given.eagle1))
    rows = load_dataset(base.data)
    chosen_on = base.training_arguments(given.out).eval_prompts
    held_out = HeldOut(rows, chosen_on, given.prompts, given.new_tokens)
    record = _record(given, target, asked, held_out)
    for number, one in enumerate(asked, start=1):
        console.print(f"head {number} of {len(asked)}: {one.objective}, share {one.share:g}, seed {one.seed}")
        made = trained_and_measured(one, target, rows, held_out, given.out)
        if made is None:
            console.print("the sitting is over (max_minutes): the same command goes on from here")
            break
        record["runs"].append(made)
        record |= {"complete": number == len(asked), **summary(record["runs"])}
        _write(given, record)
    _show(record, console)
    return record


def _given(given: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The target of a dry run, and the fields that all recipes share."""
    folder = str(given.features_dir or given.out / "features")
    if not given.dry_run:
        return None, {"data": str(given.data), "features_dir": folder}
    target = write_tiny_data(given.out / "data")
    return target, {"data": str(given.out / "data"), "features_dir": folder, **DRY_FIELDS}


def _record(given: argparse.Namespace, target: Any, asked: Sequence[Asked], held_out: HeldOut) -> dict[str, Any]:
    left_out = ("json", "figure", "draw", "out", "data", "recipe", "features_dir", "device")
    settings = {name: value for name, value in vars(given).items() if name not in left_out}
    named = public({"target": target.name_or_path or type(target).__name__, "data": asked[0].recipe.data})
    here = {**named, "dtype": str(target.dtype), "device": str(target.device)}
    record = {"complete": False, "dry_run": given.dry_run, "provenance": provenance({**settings, **here})}
    return {**record, "measured": held_out.facts(), "runs": []}


def _write(given: argparse.Namespace, record: dict[str, Any]) -> None:
    if given.json is not None:
        write_json(given.json, record)
    if given.figure is not None:
        draw(record, given.figure)


def _show(record: dict[str, Any], console: Console) -> None:
    if not record["runs"]:
        return
    console.print(scaling_table(record["runs"]))
    for objective, gain in record["gain_per_doubling"]["paper"].items():
        if gain is not None:
            console.print(f"{objective}: {gain:+.3f} acceptance length for each doubling of the data (59, 8, 10)")
    seen = record["tokens_seen"]
    console.print(f"tokens trained on, repeats included: {seen['fewest']:,} to {seen['most']:,}", highlight=False)


def _redraw(given: argparse.Namespace, console: Console) -> None:
    try:
        record = json.loads(given.draw.read_text(encoding="utf-8"))
        _show(record, console)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{given.draw} is no record of this benchmark ({error}): give what --json wrote.") from error
    if given.figure is not None:
        draw(record, given.figure)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _share(text: str) -> float:
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share, above 0 and up to 1, such as 1/8")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="a folder that `hf-eagle3 data write` made")
    what.add_argument("--dry-run", action="store_true", help="all the way on a tiny random target; no figures")
    what.add_argument("--draw", type=Path, metavar="JSON", help="table and --figure of a record; nothing is trained")
    parser.add_argument("--out", type=Path, help="heads, features and records of the runs; needed to train")
    parser.add_argument("--recipe", type=Path, help="the recipe of EAGLE-3's heads; EAGLE-1's differ in the objective")
    parser.add_argument("--steps", type=_positive, help="updates of every run (max_steps of the recipe)")
    parser.add_argument("--evaluations", type=_positive, help="measurements in the course of a run (4)")
    parser.add_argument("--shares", nargs="+", type=_share, default=[_share(share) for share in SHARES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the shares, weights and order")
    parser.add_argument(
        "--eagle1", nargs="+", default=[], metavar="FIELD=VALUE", help="recipe fields of EAGLE-1's heads alone"
    )
    parser.add_argument("--prompts", type=_positive, default=64, help="held out, that all heads are measured on")
    parser.add_argument("--new-tokens", type=_positive, default=128, help="of an answer to one of them")
    parser.add_argument("--features-dir", type=Path, help="the target's states, if not in --out")
    parser.add_argument("--device", help="else cuda where there is one")
    parser.add_argument("--json", type=Path, help="write the figures and their provenance here")
    parser.add_argument("--figure", type=Path, help="draw the figure here, as SVG")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.draw is None and given.out is None:
        parser.error("training needs --out, a folder to work in")
    try:
        if given.figure is not None:
            check_drawing()
        if given.draw is not None:
            _redraw(given, Console())
            return 0
        if given.json is not None:
            check_writable(given.json)
        run(given, Console())
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
