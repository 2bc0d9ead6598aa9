"""The Space's front matter and requirements, as the Hub reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from hf_eagle3 import embedded, release

REPOSITORY = Path(__file__).resolve().parents[2]
SPACE = REPOSITORY / "spaces" / "eagle3-demo"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def card() -> dict:
    return SpaceCard.load(SPACE / "README.md").data.to_dict()


def test_front_matter(card: dict) -> None:
    assert card["sdk"] == "gradio"
    assert (SPACE / card["app_file"]).is_file()
    assert {card["colorFrom"], card["colorTo"]} <= COLOURS
    assert len(card["short_description"]) <= 60
    assert card["license"] == "apache-2.0"
    assert card["python_version"] == "3.11"
    assert card["models"] == card["preload_from_hub"] == [embedded.TARGET_ID]


def test_gradio_is_the_one_that_the_project_asks_for(card: dict) -> None:
    lines = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    space = next(line for line in lines if line.startswith("space = ["))
    asked = next(Requirement(entry) for entry in space.split('"') if entry.startswith("gradio"))
    assert card["sdk_version"] in SpecifierSet(str(asked.specifier))


def test_requirements_name_the_package_where_it_is_released() -> None:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert release.REQUIREMENT in lines
    asked = {Requirement(line).name for line in lines if line and not line.startswith(("#", "--"))}
    assert asked == {"torch", "hf-eagle3"}
