"""Our head beside its peers, in one run: plain `generate`, transformers' prompt lookup, `economize` with the very same
head, and ours, on the same questions.

    pip install --no-deps --target DIR economize==0.3.2
    PYTHONPATH=DIR python benchmarks/peers.py --questions QUESTIONS --json benchmarks/results/cpu-peers.json

All ways run in one process on one loaded target, every question in all of them, one right after the other, in turns.
economize is no dependency of ours: it is found where it lies beside the package, or left out on request. It runs at
the setting that is fastest on prompts of our own, of those tried, as our default tree was found. Nothing else may run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peers_economize import WARM_UP_TOKENS, Economize, find_economize, rotated, settings_to_try, try_settings
from peers_figures import ECONOMIZE, LOOKUP, OURS, PLAIN, Trial, ending, figures_of, peers_table, rows_of
from rich.console import Console

from hf_eagle3.embedded import public_name
from hf_eagle3.evaluation.command import Precision, load_pair
from hf_eagle3.evaluation.lossless import Judge, compare
from hf_eagle3.evaluation.questions import Question, encode_chat, read_questions
from hf_eagle3.evaluation.report import check_writable, provenance, write_json
from hf_eagle3.evaluation.timing import Run, Settings, run_drafted, run_lookup, run_plain

PROMPTS = Path(__file__).resolve().parent / "prompts"

Way = Callable[[Mapping[str, Any], Settings], Run]


def measure(
    model: Any,
    tokenizer: Any,
    judge: Judge,
    ways: Mapping[str, Way],
    questions: Sequence[Question],
    settings: Settings,
) -> list[Trial]:
    """Every question in every way, after a warm-up of each on the first one."""
    trials = []
    for turn, question in enumerate(questions):
        inputs = encode_chat(tokenizer, question.text, model.device)
        if turn == 0:
            short = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, WARM_UP_TOKENS))
            for way in ways.values():
                way(inputs, short)
        runs = {name: ways[name](inputs, settings) for name in rotated(list(ways), turn)}
        plain = runs[PLAIN].tokens
        verdicts = {}
        for name in ways:
            if name == OURS:
                verdicts[name] = judge.rule(inputs, settings, plain, runs[name].tokens)
            elif name != PLAIN:
                verdicts[name] = compare(model, inputs["input_ids"], plain, runs[name].tokens)
        trials.append(Trial(question, runs, verdicts))
    return trials


def run(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The record; in the file as well, after every file of questions.

    Raises:
        ValueError, OSError: economize, the questions or the head are not there; told before anything is loaded or
            measured.
    """
    if ECONOMIZE not in given.without:
        find_economize()
    asked = read_questions(given.questions, given.files, given.limit)
    if not all(asked.values()):
        raise ValueError(f"A file of {given.questions} holds no question; give --files with those that do.")
    dtype = Precision(given.dtype) if given.dtype else None
    model, tokenizer, head = load_pair(None, given.head, dtype, given.device, drafting=True)
    record: dict[str, Any] = {"complete": False, "provenance": _provenance(given, model, head), "economize": None}
    peer = None
    if ECONOMIZE not in given.without:
        peer, record["economize"] = _best_economize(given, model, tokenizer, head)
        console.print(f"economize, the fastest on our own prompts: {record['economize']['setting']}")
    ways = ways_of(model, head, peer, lookup=LOOKUP not in given.without)
    judge, trials = Judge(model, head), list[Trial]()
    for number, (file, questions) in enumerate(asked.items(), start=1):
        trials += measure(model, tokenizer, judge, ways, questions, Settings(given.max_new_tokens))
        record |= {"complete": number == len(asked), **figures_of(trials)}
        if given.json is not None:
            write_json(given.json, record)
        console.print(f"{file}: {len(questions)} questions done")
    console.print(peers_table(rows_of(trials)))
    for line in ending(trials):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return record


def ways_of(model: Any, head: Any, economize: Way | None, lookup: bool) -> dict[str, Way]:
    """What is set side by side, plain first."""
    ways: dict[str, Way] = {PLAIN: lambda inputs, settings: run_plain(model, inputs, settings)}
    if lookup:
        ways[LOOKUP] = lambda inputs, settings: run_lookup(model, inputs, settings)
    if economize is not None:
        ways[ECONOMIZE] = economize
    ways[OURS] = lambda inputs, settings: run_drafted(model, head, inputs, settings)
    return ways


def _best_economize(given: argparse.Namespace, model: Any, tokenizer: Any, head: Any) -> tuple[Way, dict[str, Any]]:
    """economize at its best of the settings asked for, and the record of how that was found."""
    prompts = [question for of_file in read_questions(PROMPTS).values() for question in of_file]
    choices = settings_to_try(given.economize_depths, given.economize_confidences, model.dtype)
    peer = Economize(model, head)
    tried = try_settings(peer, model, tokenizer, prompts[: given.trial_prompts], choices, given.trial_tokens)
    best = tried[0].setting
    record = {"setting": dataclasses.asdict(best), "trials": [dataclasses.asdict(entry) for entry in tried]}
    return lambda inputs, settings: peer.run(inputs, settings, best), record


def _provenance(given: argparse.Namespace, model: Any, head: Any) -> dict[str, Any]:
    settings = {name: value for name, value in vars(given).items() if name not in ("json", "questions")}
    named = {"target": public_name(model.name_or_path), "head": public_name(head.name_or_path)}
    found = provenance({**settings, **named, "dtype": str(model.dtype), "device": str(model.device)})
    if ECONOMIZE not in given.without:
        found["packages"]["economize"] = find_economize().__version__
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability, from 0 to 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--questions", type=Path, required=True, help="a folder of .jsonl files, `turns` in a line")
    parser.add_argument("--files", nargs="+", help="only these of them")
    parser.add_argument("--limit", type=_positive, help="questions of each file (all)")
    parser.add_argument("--max-new-tokens", type=_positive, default=128)
    parser.add_argument("--json", type=Path, help="write the figures and their provenance here")
    parser.add_argument("--head", help="folder or Hub id of a head for the embedded target; else ours")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="else bfloat16 where the device has it")
    parser.add_argument("--device", help="else cuda where there is one")
    parser.add_argument("--without", nargs="+", choices=[LOOKUP, ECONOMIZE], default=[], help="leave these out")
    parser.add_argument("--economize-depths", nargs="+", type=_positive, default=[1, 2, 3, 4, 6], help="tried")
    parser.add_argument("--economize-confidences", nargs="+", type=_probability, default=[0.0, 0.5], help="tried")
    parser.add_argument("--trial-tokens", type=_positive, default=64, help="of an answer, to find its best setting")
    parser.add_argument("--trial-prompts", type=_positive, default=16, help="of our own, to find its best setting")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        if given.json is not None:
            check_writable(given.json)
        record = run(given, Console())
    except (ValueError, OSError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    return int(any(row["other"] for row in record["rows"] if row["way"] == OURS))


if __name__ == "__main__":
    sys.exit(main())
