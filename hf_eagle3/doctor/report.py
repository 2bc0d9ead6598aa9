"""A diagnosis on the screen: findings, the trials of each round, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .chain import STRETCH
from .findings import Diagnosis, Finding, Severity, Trial
from .search import CHAIN_DEPTH, STANDARD_ERRORS

STYLES = {Severity.ok: "green", Severity.note: "cyan", Severity.warning: "yellow", Severity.fault: "bold red"}


def rendered(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    """Everything that a reader wants, from top to bottom."""
    yield findings_table(diagnosis.findings)
    for number, trials in enumerate(diagnosis.rounds, start=1):
        yield trials_table(trials, number, diagnosis)
    if diagnosis.real:
        figures = ", ".join(f"{length:.2f} {name}" for name, length in diagnosis.real.items())
        yield Text(f"`generate` with the head: acceptance length {figures} (tokens per verification, bonus included)")
    yield verdict(diagnosis)


def findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("check", "", "what was seen, and what to do"):
        table.add_column(heading)
    for finding in findings:
        said = " ".join(filter(None, (finding.seen, finding.advice)))
        table.add_row(finding.check, Text(finding.severity.value, STYLES[finding.severity]), Text(said))
    return table


def trials_table(trials: Sequence[Trial], number: int, diagnosis: Diagnosis) -> Table:
    """One row a reading; the first is what the others are compared with."""
    caption = (
        f"length: acceptance length of a greedy chain of {CHAIN_DEPTH}, tokens per verification, bonus included, at "
        f"{diagnosis.positions} positions of {diagnosis.answers} answers, in contexts of up to {diagnosis.longest} "
        "tokens; fit: log-probability in nats for each drafted token, difference and its standard error over "
        f"stretches of {STRETCH} positions; better: beyond {STANDARD_ERRORS:g} standard errors"
    )
    base = trials[0]
    title = "readings of the head" if number == 1 else f"round {number}, on top of the change adopted"
    table = Table(title=title, title_justify="left", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("reading")
    for heading in ("length", "difference", "fit", ""):
        table.add_column(heading, justify="right")
    for trial in trials:
        if trial.problem:
            table.add_row(Text(trial.told), "-", "", "", Text("cannot run", "red"))
            continue
        difference = "" if trial is base else f"{trial.difference:+.2f}"
        fit = "" if trial is base else f"{trial.gain:+.3f} ± {trial.error:.3f}"
        word = Text("better", "bold green") if trial.clear else ""
        table.add_row(Text(trial.told), f"{trial.acceptance_length:.2f}", difference, fit, word)
    return table


def verdict(diagnosis: Diagnosis) -> Text:
    """The last line."""
    advised = diagnosis.recommendation
    if advised is not None:
        change = f"{advised.present:.2f} to {advised.acceptance_length:.2f}"
        told = "; ".join(advised.changes.values())
        return Text(f"Recommended: {told} (acceptance length {change}); --write stores it.", "bold yellow")
    if diagnosis.faults:
        number = len(diagnosis.faults)
        return Text(f"{number} fault{'s' if number > 1 else ''}, see above.", "bold red")
    best = "No other reading is clearly better: " if diagnosis.rounds else "Nothing to mend: "
    return Text(f"{best}leave the head as it is.", "bold green")
