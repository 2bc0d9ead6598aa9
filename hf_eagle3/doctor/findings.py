"""What the doctor says: findings, the reading that it recommends, and all of it together as a diagnosis.

Plain data; knows nothing of how anything was found out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Severity(str, Enum):
    """How bad a finding is; a `fault` must be mended before the pair works as it should."""

    ok = "ok"
    note = "note"
    warning = "warning"
    fault = "fault"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        check: what was looked at, in a word or two.
        severity: see [`Severity`].
        seen: what was found, in a sentence.
        advice: what to do about it; empty where there is nothing to do.
    """

    check: str
    severity: Severity
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Trial:
    """One reading of the head, measured on the target's own answers.

    Args:
        kind: the convention that it changes; empty for the reading that the files announce.
        told: the change, in words.
        acceptance_length: tokens per verification of a greedy chain, bonus included, over all answers.
        difference: in acceptance length, to the reading that it is compared with.
        gain: mean over stretches of the answers of the difference in fit to that reading: log-probability, in nats
            for each drafted token, that the head gives to the target's choice.
        error: standard error of that mean.
        clear: whether the gain is more than noise, see `search.SMALLEST_GAIN`.
        problem: why this reading cannot be measured, if it cannot.
    """

    kind: str
    told: str
    acceptance_length: float = 1.0
    difference: float = 0.0
    gain: float = 0.0
    error: float = 0.0
    clear: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Recommendation:
    """A reading that is clearly better than the present one.

    Args:
        changes: what differs from the present reading, by kind.
        fields: fields of the head's config, and the values to set.
        tensors: names of the tensors that have to be rewritten.
        acceptance_length: of the recommended reading, and `present` that of the present one; as in [`Trial`].
    """

    changes: Mapping[str, str]
    fields: Mapping[str, Any]
    tensors: Sequence[str]
    acceptance_length: float
    present: float


@dataclass
class Diagnosis:
    """Everything that an examination found.

    Args:
        head, target: their names, as they were given.
        findings: in the order of the checks.
        rounds: the trials of each round of the search; the first of each is what the others are compared with.
        recommendation: `None` where nothing beats the present reading clearly, or nothing could be measured.
        real: acceptance lengths of `generate` with the head itself, tokens per verification, bonus included, by
            reading ("as it is", "as recommended").
        answers, positions, longest: what the trials rest on: answers, positions in them at which a chain began, and
            tokens of the longest context.
    """

    head: str
    target: str
    findings: list[Finding] = field(default_factory=list)
    rounds: list[list[Trial]] = field(default_factory=list)
    recommendation: Recommendation | None = None
    real: dict[str, float] = field(default_factory=dict)
    answers: int = 0
    positions: int = 0
    longest: int = 0

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity is Severity.fault]

    @property
    def healthy(self) -> bool:
        """No fault, and no other reading of the head that is clearly better."""
        return not self.faults and self.recommendation is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"healthy": self.healthy, **asdict(self)}
