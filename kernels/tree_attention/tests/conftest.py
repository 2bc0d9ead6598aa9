"""What every test of the kernel may rely on: one thread, and only the tests that this process can run.

The interpreted tests need TRITON_INTERPRET=1 before Python starts, and then nothing else may run: Triton reads it when
it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path: object) -> bool | None:
    name = getattr(collection_path, "name", "")
    if not (name.startswith("test_") and name.endswith(".py")):
        return None
    return True if name.startswith("test_interpreted") != INTERPRETED else None


@pytest.fixture
def interpreted_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels that Triton's interpreter ran, by name; a test in which it ran none has tested something else."""
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    run = GridExecutor.__call__

    def noted(self: GridExecutor, *arguments: object, **options: object) -> object:
        launched.append(self.fn.__name__)
        return run(self, *arguments, **options)

    monkeypatch.setattr(GridExecutor, "__call__", noted)
    yield launched
    assert launched, "no kernel ran"
