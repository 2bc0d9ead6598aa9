"""What is wrong between a head and a target, found by trying: `examine(head, target, tokenizer)`."""

from __future__ import annotations

from .examination import Examination, examine
from .findings import Diagnosis, Finding, Recommendation, Severity, Trial

__all__ = ["Diagnosis", "Examination", "Finding", "Recommendation", "Severity", "Trial", "examine"]
