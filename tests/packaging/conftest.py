"""A copy of the tree, and what is built from it offline, so that the tree itself stays clean."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.building import build_wheel, run

REPOSITORY = Path(__file__).resolve().parents[2]
# Not the source's: what .gitignore names, and git's own.
LEFT_BEHIND = (
    ".git", ".venv", "__pycache__", "*.py[cod]", "*.egg-info", "build", "dist", ".pytest_cache", ".mypy_cache",
    ".ruff_cache", ".hypothesis", ".coverage", "runs",
)  # fmt: skip


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as git has it or would take it; where there is no git, all but what LEFT_BEHIND names."""
    folder = tmp_path_factory.mktemp("source") / "hf-eagle3"
    if not (REPOSITORY / ".git").exists():
        shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        return folder
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    known = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, known):
        if (REPOSITORY / name).is_file():  # not yet, where a deletion is not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree as it is."""
    copy = tmp_path_factory.mktemp("tree") / "hf-eagle3"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return build_wheel(copy, tmp_path_factory.mktemp("wheel"))
