"""The parts of `make dist`'s check that need no environment of their own; the whole takes minutes and the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import check_dist
import pytest
from check_dist import Wrong, demo_outcome, find_archives, main, read_metadata, run

import hf_eagle3

ANSWER = "24 tokens · acceptance length {} (tokens per verification, bonus included) · ratio 1.21 · identical: {}\n"


@pytest.fixture
def dist(wheel: Path, sdist: Path, tmp_path: Path) -> Path:
    for archive in (wheel, sdist):
        shutil.copy(archive, tmp_path)
    return tmp_path


def test_one_wheel_and_one_sdist(dist: Path) -> None:
    assert [path.suffix for path in find_archives(dist)] == [".whl", ".gz"]
    assert {str(read_metadata(path).version) for path in find_archives(dist)} == {hf_eagle3.__version__}
    (dist / "other.whl").touch()
    with pytest.raises(Wrong, match=r"other\.whl"):
        find_archives(dist)
    with pytest.raises(Wrong, match="one sdist"):
        find_archives(dist / "missing")


def test_metadata_that_no_index_takes(tmp_path: Path) -> None:
    path = tmp_path / "x-1-py3-none-any.whl"
    for field, told in (("Requires-Python: yes", "no index takes"), ("Summary: fine", "no description")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x-1.dist-info/METADATA", f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{field}\n")
        with pytest.raises(Wrong, match=told):
            read_metadata(path)


def test_an_archive_that_grew(dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_dist, "LARGEST", 1000)
    with pytest.raises(Wrong, match="bytes"):
        read_metadata(find_archives(dist)[0])


def test_the_demo_has_to_draft_and_to_agree() -> None:
    good = ANSWER.format("1.92", "yes") + ANSWER.format("2.10", "yes")
    assert demo_outcome(good, 2) == "2 answers identical to plain generate, acceptance lengths 1.92, 2.1"
    for shown in (ANSWER.format("1.92", "yes"), good.replace("2.10", "1.00"), good.replace("yes", "NO"), ""):
        with pytest.raises(Wrong):
            demo_outcome(shown, 2)


def test_a_command_that_fails_is_told_whole() -> None:
    assert run([sys.executable, "-c", "print(2)"]) == "2\n"
    with pytest.raises(Wrong, match=r"(?s)failed.*why"):
        run([sys.executable, "-c", "import sys; sys.exit('why')"])


def test_a_command_does_not_see_our_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    assert "/somewhere" not in run([sys.executable, "-c", "import sys; print(sys.path)"])


def test_what_is_wrong_ends_with_status_1(dist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dist), "--tag", "v9.9.9"]) == 1
    assert "v9.9.9" in capsys.readouterr().err
    assert main([str(dist / "missing")]) == 1


def test_it_runs_as_make_calls_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, check_dist.__file__, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("check_dist: ")
