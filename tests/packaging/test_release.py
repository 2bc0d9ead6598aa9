"""One place names what users install: whatever else names it, names the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from check_dist import tag_problem
from packaging.requirements import Requirement
from packaging.version import Version

import hf_eagle3
from hf_eagle3 import release

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = ("README.md", "CONTRIBUTING.md", "docs", "model_cards", "spaces", "hf_eagle3", "kernels")
TEXTS = {".md", ".txt", ".py", ".toml", ".yaml", ".yml", ".json"}
_URL = re.compile(r"git\+https?://[^\s'\"`)\]}>,]+")
_REF = re.compile(re.escape(release.REPOSITORY) + r"(?:\.git)?(?:/(?:tree|blob|raw|archive)/|@)([^\s'\"`)\]}>,/#]+)")
_INDEX = re.compile(r"pip install(?: -{1,2}[\w-]+)* ['\"]?hf-eagle3\b(?! @)")


def wrong_names(text: str, requirements: bool = False) -> list[str]:
    """What `text` says about installing hf-eagle3 that `hf_eagle3.release` does not.

    Args:
        requirements: whether it is a requirements.txt.
    """
    wanted = Requirement(release.REQUIREMENT)
    wrong = [
        url for url in _URL.findall(text) if "hf-eagle3" in url and url != f"git+{release.REPOSITORY}@{release.TAG}"
    ]
    wrong += [ref for ref in _REF.findall(text) if ref not in (release.TAG, "main")]
    if wanted.url is not None:
        wrong += _INDEX.findall(text)  # no index has it yet
    for line in text.splitlines() if requirements else ():
        asked, _, comment = line.partition(" #")
        if asked.strip() and not asked.startswith(("#", "-")):
            given = Requirement(asked)
            # transformers cannot read the URL in a requirement of custom code, which then stands in its comment
            same = (given.url, given.specifier) == (wanted.url, wanted.specifier) or release.INSTALL_COMMAND in comment
            wrong += [line] if given.name.replace("_", "-") == "hf-eagle3" and not same else []
    return wrong


def texts() -> Iterator[Path]:
    for name in PLACES:
        path = REPOSITORY / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        for each in found:
            if each.is_file() and each.suffix in TEXTS and "__pycache__" not in each.parts:
                yield each


def test_everything_names_what_release_names() -> None:
    named = 0
    for path in texts():
        if path == Path(release.__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert not wrong_names(text, path.name.startswith("requirements")), path.relative_to(REPOSITORY)
        named += f"{release.REPOSITORY}@{release.TAG}" in text
    assert named, "nothing tells users how to install it"


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'git+https://github.com/somebody/hf-eagle3@v0.1.0'",
        f"pip install git+{release.REPOSITORY}@v9.9.9",
        f"pip install git+{release.REPOSITORY}",
        f"[source]({release.REPOSITORY}/blob/v9.9.9/README.md)",
        "pip install hf-eagle3",
        'pip install --upgrade "hf-eagle3[train]"',
    ],
)
def test_another_place_or_tag_is_found(text: str) -> None:
    assert wrong_names(text)


@pytest.mark.parametrize(
    "line", ["hf-eagle3", "hf_eagle3==0.0.1", f"hf-eagle3[space] @ git+{release.REPOSITORY}@v9.9.9", "hf-eagle3>=0.1"]
)
def test_another_requirement_is_found(line: str) -> None:
    assert wrong_names(f"gradio>=5\n{line}\n", requirements=True)


@pytest.mark.parametrize(
    "text",
    [
        release.REQUIREMENT,
        f"hf-eagle3>0  # {release.INSTALL_COMMAND}\n",
        f"# comment\n-r other.txt\n{release.REQUIREMENT.replace('hf-eagle3 @', 'hf-eagle3[space] @')}  # why\n\n",
    ],
)
def test_the_right_one_is_left_alone(text: str) -> None:
    assert not wrong_names(text, requirements=True)


def test_the_code_in_a_heads_repository_asks_for_it() -> None:
    code = pytest.importorskip("hf_eagle3.hub.code")
    assert release.TAG in code.REQUIREMENT_LINE
    assert not wrong_names(code.REQUIREMENT_LINE, requirements=True)


def test_release_is_made_of_one_repository_and_one_tag() -> None:
    assert Requirement(release.REQUIREMENT).name == "hf-eagle3"
    assert release.INSTALL_COMMAND.startswith("pip install ")
    for told in (release.REQUIREMENT, release.INSTALL_COMMAND):
        assert f"git+{release.REPOSITORY}@{release.TAG}" in told


def test_an_extra_is_installed_from_the_same_place() -> None:
    pip, install, what = shlex.split(release.install_command("train"))
    given, plain = Requirement(what), Requirement(release.REQUIREMENT)
    assert (pip, install) == ("pip", "install")
    assert (given.name, given.extras, given.url) == (plain.name, {"train"}, plain.url)


def test_this_version_may_name_this_tag() -> None:
    assert tag_problem(hf_eagle3.__version__, release.TAG) is None


@pytest.mark.parametrize(
    ("version", "tag", "pushed", "allowed"),
    [
        ("0.1.0.dev0", "v0.1.0", None, True),  # before the first release
        ("0.1.0", "v0.1.0", "v0.1.0", True),
        ("0.2.0.dev0", "v0.1.0", None, True),  # between two
        ("0.2.0", "v0.1.0", None, False),
        ("0.1.0", "v0.2.0", None, False),
        ("0.2.0.dev0", "v0.3.0", None, False),
        ("0.1.0.dev0", "v0.1.0", "v0.1.0", False),
        ("0.1.0", "v0.1.0", "v0.1.1", False),
        ("0.1.0", "0.1.0", None, False),
        ("0.2.0.dev0", "v0.2.0.dev0", None, False),
    ],
)
def test_which_tag_a_version_may_name(version: str, tag: str, pushed: str | None, allowed: bool) -> None:
    assert (tag_problem(version, tag, pushed) is None) == allowed


def test_the_changelog_knows_the_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    version = Version(hf_eagle3.__version__)
    heading = f"## Unreleased ({version.base_version})" if version.is_devrelease else f"## {version} ("
    assert heading in changelog


def test_a_pushed_tag_is_built_checked_and_published() -> None:
    path = REPOSITORY / ".github" / "workflows" / "release.yml"
    if not path.exists():
        pytest.skip("a source distribution has no workflows")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert workflow[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads the key `on` as true
    assert "make dist" in [step.get("run") for step in build["steps"]]
    assert build["env"]["RELEASE_TAG"] == "${{ github.ref_name }}"
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert not [step for step in publish["steps"] if "password" in step.get("with", {})]
