"""The source distribution: the whole tree, nothing but the tree, and the same wheel as the tree's."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.building import build_wheel
from packaging.metadata import Metadata

import hf_eagle3

LARGEST = 40 * 1000**2  # the head, at the most
# Of use in the repository alone.
NOT_IN_IT = {".github", ".gitignore"}
# What setuptools writes.
ADDED = {"PKG-INFO", "setup.cfg", "hf_eagle3.egg-info"}


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_it_holds_the_tree(source: Path, unpacked: Path) -> None:
    of_the_tree = {path for path in files(source) if path.parts[0] not in NOT_IN_IT | ADDED}
    there = {path for path in files(unpacked) if path.parts[0] not in ADDED}
    assert there == of_the_tree, "name what is new in MANIFEST.in"
    assert {"tests", "docs", "LICENSE", "Makefile", "model_cards"} <= {path.parts[0] for path in there}


def test_its_files_are_the_trees(source: Path, unpacked: Path) -> None:
    for path in files(unpacked):
        if path.parts[0] not in ADDED:
            assert (unpacked / path).read_bytes() == (source / path).read_bytes(), path


def test_nothing_in_it_is_huge(sdist: Path, unpacked: Path) -> None:
    largest = max(files(unpacked), key=lambda path: (unpacked / path).stat().st_size)
    assert largest.name == "model.safetensors"
    assert (unpacked / largest).stat().st_size < LARGEST
    assert sdist.stat().st_size < 2 * LARGEST


def test_metadata(unpacked: Path) -> None:
    metadata = Metadata.from_email((unpacked / "PKG-INFO").read_bytes(), validate=True)
    assert str(metadata.version) == hf_eagle3.__version__
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"


def test_its_wheel_is_the_trees_wheel(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(unpacked, tmp_path)
    assert again.name == wheel.name
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        for name in one.namelist():
            if not name.endswith("RECORD"):  # whose lines stand in the order of the folders
                assert one.read(name) == other.read(name), name
