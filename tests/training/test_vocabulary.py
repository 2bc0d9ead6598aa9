"""The draft vocabulary: ranked by probability, stop tokens always in, honest coverage."""

from __future__ import annotations

import pytest
import torch

from hf_eagle3.training.vocabulary import choose_vocabulary, coverage

MASS = torch.tensor([0.0, 5.0, 1.0, 3.0, 0.5, 0.5])


def test_the_likeliest_and_the_stop_tokens() -> None:
    assert choose_vocabulary(MASS, 3, always=[0]).tolist() == [0, 1, 3]
    assert choose_vocabulary(MASS, 6, always=[]).tolist() == [0, 1, 2, 3, 4, 5]
    assert MASS[0] == 0  # what was given stays as it was


def test_coverage_is_a_share_of_probability() -> None:
    assert coverage(MASS, torch.tensor([1, 3])) == pytest.approx(0.8)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="draft vocabulary of"):
        choose_vocabulary(MASS, size, always=[0, 1])
