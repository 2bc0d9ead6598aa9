"""The kernel's interpreted tests, in a process of their own: Triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux only")
ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "kernels" / "tree_attention" / "tests"


def _passed(marks: str, report: Path) -> int:
    """How many of the interpreted tests with these marks passed; fails, with their words, where one did not."""
    files = sorted(str(file) for file in SUITE.glob("test_interpreted*.py"))
    options = ["-q", "-x", "-m", marks, "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--junitxml={report}"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    suite = next(ElementTree.parse(report).iter("testsuite"))
    return int(suite.attrib["tests"]) - int(suite.attrib["skipped"])


def test_kernel_through_triton_s_interpreter(tmp_path: Path) -> None:
    assert _passed("not slow", tmp_path / "report.xml") >= 100


@pytest.mark.slow
def test_kernel_through_triton_s_interpreter_on_the_whole_grid(tmp_path: Path) -> None:
    assert _passed("slow", tmp_path / "report.xml") >= 70
