"""The trials' chains are the drafter's: same drafts, position by position."""

from __future__ import annotations

import pytest
import torch

from hf_eagle3 import TreeShape, embedded
from hf_eagle3.doctor import Teacher
from hf_eagle3.doctor.chain import acceptance_length, score_chains
from hf_eagle3.drafters.eagle3 import Eagle3CandidateGenerator

DEPTH = 4


@torch.no_grad()
def _drafted(head, target, passage, row: int) -> list[int]:
    """The greedy chain that the real drafter makes once the target has seen positions up to `row`."""
    drafter = Eagle3CandidateGenerator(head, target, TreeShape(DEPTH, DEPTH, 1))
    drafter.observe([passage.states[boundary][None, : row + 1] for boundary in drafter.boundaries], row + 1)
    return drafter.draft(passage.ids[None, : row + 2]).tokens[0, 1:].tolist()


@pytest.mark.parametrize("window", [None, 3, 40])
def test_chains_are_those_of_the_drafter(teacher: Teacher, window: int | None) -> None:
    head = embedded.load_head(torch.float32)
    head.config.sliding_window = window
    with torch.no_grad():
        passage = teacher.passages(head.config.target_boundaries)[0]
        score = score_chains(head, teacher.target, passage, DEPTH)
    rows = [t for start, end in passage.spans for t in range(start - 1, end - 1 - DEPTH)]
    assert len(rows) == score.fit.shape[0]
    accepted = 0
    for place in range(0, len(rows), 5):
        row = rows[place]
        chain = _drafted(head, teacher.target, passage, row)
        choices = passage.likely[row + 1 : row + 1 + DEPTH, 0].tolist()
        text = passage.ids[row + 2 : row + 2 + DEPTH].tolist()
        for level in range(DEPTH):
            assert bool(score.known[level, place]) == (text[:level] == choices[:level])
            if score.known[level, place]:
                right = chain[: level + 1] == choices[: level + 1]
                assert bool(score.right[level, place]) == right, (row, level)
                accepted += right
    assert accepted > 2  # else nothing was compared but failures
    assert acceptance_length([score]) > 1.2
