"""Errors as the house wants them: one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def sentence(kind: Any, call: Callable[[], Any]) -> str:
    """What `call` raises, an error of this kind, which has to be one line that ends."""
    with pytest.raises(kind) as raised:
        call()
    said = str(raised.value)
    assert "\n" not in said, said
    assert said.rstrip()[-1] in ".'`)", said
    return said
