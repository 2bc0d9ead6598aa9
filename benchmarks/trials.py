"""Trials of a recipe: a list of changes to it, each trained on equally many tokens with the same seeds, and a table.

    python benchmarks/trials.py run TRIALS.yaml --out WORK --json RECORD [--update TRAINING.md]
    python benchmarks/trials.py table RECORD [--update TRAINING.md]

TRIALS.yaml:

    name: first                 # of the block in the Markdown file
    tokens: 400000              # that every run is trained on, repeats included, padding left out
    evaluations: 4              # in the course of a run, the last one at its end (4)
    seeds: [0, 1]               # ([0])
    base: {data: DATA, dtype: float32, max_batch_tokens: 4096}      # a recipe, or the file of one
    trials:                     # fields of the recipe that differ; `seeds` too
      base:
      higher rate: {learning_rate: 2e-3}
      deep boundaries: {boundaries: [12, 21, 28], seeds: [0, 1, 2]}

Each run is a process of its own, `hf-eagle3 train`. The target's states are computed once for all runs that read the
same ones. Killed or stopped, the same command goes on; a run that fails is told of, and tried again next time.
`--update` puts the table between the lines `<!-- trials first -->` and `<!-- /trials first -->` of a Markdown file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from training_runs import of_the_head, public, training_record
from trials_plan import Plan, Run, read_plan
from trials_table import trials_table, update_block

from hf_eagle3.evaluation.report import check_writable, provenance, write_json
from hf_eagle3.training import run as training
from hf_eagle3.training.recipe import complete, differences, settled, write_recipe


def run_all(plan: Plan, work: Path, record_path: Path, markdown: Path | None) -> dict[str, Any]:
    """The record; in the file as well, and the table in the Markdown file, after every run.

    Raises:
        ValueError, OSError: something does not fit together, or another process works in `work`.
    """
    facts = {"name": plan.name, "tokens": plan.tokens, "base": public(plan.base)}
    record: dict[str, Any] = {**facts, "complete": False, "provenance": provenance({}), "runs": []}
    with _alone_in(work) as lock:
        for number, one in enumerate(plan.runs, start=1):
            print(f"run {number} of {len(plan.runs)}: {one.trial}, seed {one.seed}", flush=True)
            record["runs"].append(_result(one, work, lock))
            record["complete"] = number == len(plan.runs)
            write_json(record_path, record)
            if markdown is not None:
                update_block(markdown, plan.name, trials_table(record))
    return record


def _result(one: Run, work: Path, lock: int) -> dict[str, Any]:
    """What a run came to, trained now unless it is there already."""
    folder = work / one.folder
    args = one.recipe.training_arguments(folder)
    wanted = complete(settled(one.recipe, args.device, folder), args)
    told = {"trial": one.trial, "overrides": public(one.overrides), "seed": one.seed}
    if (folder / training.RECORD).is_file():
        changed = "; ".join(differences(wanted, folder))
        if changed:
            raise ValueError(f"{folder} holds a run of another recipe ({changed}): give another --out or name.")
    else:
        error = _train(wanted, folder, lock)
        if error is not None:
            print(f"  failed: {error}", flush=True)
            return {**told, "failed": error.replace(f"{work}/", "")}
    record = training_record(folder)
    sizes = {name: record[name] for name in ("steps", "tokens_seen", "best_step", "draft_vocabulary_coverage")}
    head = of_the_head(record)
    return {**told, **sizes, **{name: head.get(name) for name in ("loss", "chain_acceptance", "acceptance_length")}}


def _train(recipe: dict[str, Any], folder: Path, lock: int) -> str | None:
    """Train in a process of its own, its output in a log beside the folder; what went wrong, if anything did.

    The process inherits the lock: one that outlives us keeps others out of the folder.
    """
    given = folder.with_name(f"{folder.name}.given")
    write_recipe({name: value for name, value in recipe.items() if value is not None}, given)
    log = folder.with_suffix(".log")
    command = [sys.executable, "-m", "hf_eagle3.cli", "train", "--config", str(given / "recipe.yaml")]
    with log.open("a", encoding="utf-8") as output:
        status = _process([*command, "--output-dir", str(folder)], output, lock)
    if status == 0 and (folder / training.RECORD).is_file():
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"ended by signal {-status}" if status < 0 else last


def _process(command: list[str], output: IO[str], lock: int) -> int:
    """The status that a command ends with; negative if by a signal."""
    return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock]).returncode


@contextmanager
def _alone_in(work: Path) -> Iterator[int]:
    """Keeps other trials out of a folder, and ends a training with us where we are asked to end."""
    work.mkdir(parents=True, exist_ok=True)
    # `subprocess.run` ends its process on the way out.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with (work / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(
                    f"Other trials, or a training that they left behind, work in {work}: wait for them, or give "
                    "another --out."
                ) from error
            yield lock.fileno()
    finally:
        signal.signal(signal.SIGTERM, before)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("runs"), list):
            raise ValueError("it has no runs")
        trials_table(record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of trials ({error}): give what `run --json` wrote.") from error
    return record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not trained yet, and make the table")
    run.add_argument("trials", type=Path, help="the YAML file of the trials; see the beginning of this file")
    run.add_argument("--out", type=Path, required=True, help="heads, features and logs")
    run.add_argument("--json", type=Path, required=True, help="the record")
    table = commands.add_parser("table", help="the table of a record; nothing is trained")
    table.add_argument("json", type=Path)
    for command in (run, table):
        command.add_argument("--update", type=Path, help="put the table into this Markdown file, between its marks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        if given.command == "run":
            check_writable(given.json)
            plan = read_plan(given.trials, given.out)
            if given.update is not None:
                update_block(given.update, plan.name, None)
            record = run_all(plan, given.out, given.json, given.update)
        else:
            record = _read_record(given.json)
            if given.update is not None:
                update_block(given.update, record["name"], trials_table(record))
        print(trials_table(record))
    except (ValueError, OSError) as error:
        print(f"trials: {error}", file=sys.stderr)
        return 1
    return int(any("failed" in run for run in record["runs"]))


if __name__ == "__main__":
    sys.exit(main())
