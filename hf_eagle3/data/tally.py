"""What every step of writing a data set kept and dropped, and why: the numbers of its card.

Knows nothing of the steps: each names itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Step:
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


class Tally:
    """Counts by step; the steps stand in the order of their first count."""

    def __init__(self) -> None:
        self._steps: dict[str, _Step] = {}

    def kept(self, step: str, n: int = 1) -> None:
        """`n` more passed."""
        self._step(step).kept += n

    def dropped(self, step: str, reason: str, n: int = 1) -> None:
        """`n` more did not pass, for this reason."""
        self._step(step).dropped[reason] += n

    def noted(self, step: str, what: str, n: int = 1) -> None:
        """Something worth telling that drops nothing by itself."""
        self._step(step).notes[what] += n

    def rows(self) -> list[tuple[str, int, dict[str, int], dict[str, int]]]:
        """Step, kept, dropped by reason and notes; reasons and notes by name."""
        return [
            (name, step.kept, dict(sorted(step.dropped.items())), dict(sorted(step.notes.items())))
            for name, step in self._steps.items()
        ]

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally."""
        for name, step in other._steps.items():
            own = self._step(name)
            own.kept += step.kept
            own.dropped.update(step.dropped)
            own.notes.update(step.notes)

    def to_json(self) -> dict[str, Any]:
        """As a plain dict: `{step: {"kept": n, "dropped": {reason: n}, "notes": {note: n}}}`."""
        return {name: {"kept": kept, "dropped": dropped, "notes": notes} for name, kept, dropped, notes in self.rows()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Tally:
        """The tally that `to_json` gave.

        Raises:
            ValueError: if the record is none.
        """
        tally = cls()
        try:
            for name, step in record.items():
                tally._steps[name] = _Step(int(step["kept"]), Counter(step["dropped"]), Counter(step["notes"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{record!r:.80} was given as a tally: each step needs kept, dropped and notes."
            ) from error
        return tally

    def _step(self, name: str) -> _Step:
        return self._steps.setdefault(name, _Step())
