"""The benchmarks' scripts as modules: they are no package, and import one another by their bare names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def scripts_of(**names: str) -> SimpleNamespace:
    """The modules `names` under the names that they are to have, imported as they are when a script is started."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})
    finally:
        sys.path.remove(str(BENCHMARKS))
