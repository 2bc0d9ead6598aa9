"""The kernel's interpreted tests, in a process of their own: Triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "kernels" / "tree_attention" / "tests"
FEWEST = 60


def test_kernel_through_triton_s_interpreter(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    files = sorted(str(file) for file in SUITE.glob("test_interpreted*.py"))
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--junitxml={report}"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    suite = next(ElementTree.parse(report).iter("testsuite"))
    ran = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    assert ran >= FEWEST, f"only {ran} interpreted tests ran"
