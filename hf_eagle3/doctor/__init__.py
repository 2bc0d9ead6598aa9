"""What is wrong between a head and a target, found by trying: `examine(head, target, tokenizer)`."""

from __future__ import annotations

from .examination import Examination, examine
from .findings import Diagnosis, Finding, Recommendation, Severity, Trial
from .teacher import Teacher

__all__ = ["Diagnosis", "Examination", "Finding", "Recommendation", "Severity", "Teacher", "Trial", "examine"]
