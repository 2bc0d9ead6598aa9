"""The demo as its visitors meet it: a real Chromium, the embedded pair, nothing replaced.

Run by `make test-space`. With SPACE_PICTURE=docs/space.png it also takes the picture of the README.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_eagle3.default_trees import CPU, DEFAULT_TREES

pytestmark = pytest.mark.space

REPOSITORY = Path(__file__).resolve().parents[2]
APP = REPOSITORY / "spaces" / "eagle3-demo" / "app.py"
START, ANSWER = 300, 90_000  # seconds until the app answers; milliseconds until an answer is whole
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PALINDROME = "Write a Python function that checks whether a string is a palindrome."
STORY = "Write a very long story about a fox and the sea."


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, running on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log"
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1"}
    with log.open("wb") as out:
        app = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/", app, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.terminate()
        app.wait()


def _wait_until_up(address: str, app: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        assert app.poll() is None, f"the app ended:\n{log.read_text()[-3000:]}"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the app did not answer within {START} s:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"none of {', '.join(BROWSERS)} is installed: `make test-space` installs one"
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # A container's root may not make Chromium's sandbox; the only pages here are our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """One user's page, and everything that went wrong on it.

    Args:
        browser: gives the visitor a context of their own.
        address: of the app.
        size: of the window, in pixels.
        theme: "light" or "dark".
    """

    def __init__(self, browser: Any, address: str, size: tuple[int, int] = (1280, 900), theme: str = "light") -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, color_scheme=theme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(ANSWER)
        self.wrong: list[str] = []
        self.page.on("console", lambda said: self._note(said.text, said.type in ("error", "warning")))
        self.page.on("pageerror", lambda error: self._note(str(error), True))
        self.page.on("request", lambda request: self._note(request.url, not _is_ours(request.url, address)))
        self.page.on("response", lambda response: self._note(response.url, response.status >= 400))
        self.page.goto(f"{address}?__theme={theme}")

    def _note(self, what: str, is_wrong: bool) -> None:
        if is_wrong:
            self.wrong.append(what)

    def limit(self, tokens: int) -> None:
        """At most so many new tokens."""
        box = self.page.locator("#length input[type=number]")
        box.fill(str(tokens))
        box.press("Tab")

    def ask(self, question: str) -> None:
        """Types and sends."""
        self.page.locator("#question textarea").fill(question)
        self.page.locator("#send").click()

    def has_answer(self) -> None:
        """Waits until both answers are whole, and the app is ready for the next question."""
        self.page.wait_for_selector("#live .turn")
        self.page.wait_for_function("!document.querySelector('#live .cursor')")
        self.page.wait_for_selector("#send:enabled")

    def text(self, where: str) -> str:
        return self.page.locator(where).inner_text()

    def leaves(self) -> None:
        """Closes the page; nothing may have gone wrong on it."""
        self.context.close()
        assert self.wrong == []


def _is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    visitor.leaves()


@pytest.fixture(scope="module")
def reader(browser: Any, address: str) -> Iterator[Visitor]:
    """A visitor who has asked, seen both answers grow, and now reads them."""
    reader = Visitor(browser, address)
    reader.limit(128)
    reader.ask(PALINDROME)
    # Both answers at once, and neither of them whole.
    reader.page.wait_for_function(
        "document.querySelector('#live .eagle .round') && document.querySelector('#live .plain .token')"
        " && document.querySelectorAll('#live .cursor').length == 2"
    )
    reader.has_answer()
    yield reader
    reader.leaves()


def test_both_answers_are_there_with_their_figures(reader: Visitor) -> None:
    assert PALINDROME in reader.text("#live .question")
    drafted, plain = reader.text("#live .eagle .answer"), reader.text("#live .plain .answer")
    assert "def " in drafted
    assert "def " in plain
    for side in ("eagle", "plain"):
        assert float(reader.text(f"#live .{side} .speed").split()[0]) > 0
    assert re.fullmatch(r"\d+\.\d\d×", reader.text("#live .ratio strong"))
    assert float(reader.text("#live .length strong")) > 1
    assert 2 < reader.page.locator("#live .positions tbody tr").count() <= DEFAULT_TREES[CPU].tree_depth
    tokens, forwards = map(int, re.findall(r"\d+", reader.text("#live .eagle footer")))
    assert forwards < tokens
    assert len(set(re.findall(r"\d+", reader.text("#live .plain footer")))) == 1
    assert re.search("as plain generate|near tie", reader.text("#live .same"))


def test_tokens_are_coloured_as_the_legend_says(reader: Visitor) -> None:
    colour = "element => getComputedStyle(element).backgroundColor"
    seen = set()
    for kind in ("own", "d1", "d2", "d3"):
        key = reader.page.locator(f"#legend .token.{kind}").evaluate(colour)
        assert reader.page.locator(f"#live .eagle .token.{kind}").first.evaluate(colour) == key
        seen.add(key)
    assert len(seen) == 4


def test_a_click_on_a_token_draws_the_tree_of_its_round(reader: Visitor) -> None:
    from playwright.sync_api import expect

    rounds = reader.page.locator("#live .round")
    for number in (2, 5):
        rounds.nth(number).locator(".token").first.click()
        caption = reader.page.locator("#tree figcaption")
        expect(caption).to_have_text(re.compile(rf"^Round {number + 1} of {rounds.count()}: 9 drafts"))
        assert reader.page.locator("#tree svg text").count() == 11  # the root, nine drafts, the bonus
        expect(rounds.nth(number)).to_have_class(re.compile("picked"))
    rounds.nth(5).press("ArrowRight")
    reader.page.keyboard.press("Enter")
    expect(caption).to_have_text(re.compile("^Round 7 of"))


def test_rejected_drafts_are_shown_on_demand(reader: Visitor) -> None:
    from playwright.sync_api import expect

    rejected = reader.page.locator("#live .eagle .rejected").first
    expect(rejected).to_be_hidden()
    reader.page.locator("#show-rejected input").check()
    expect(rejected).to_be_visible()
    reader.page.locator("#show-rejected input").uncheck()
    expect(rejected).to_be_hidden()


def test_the_picture_of_the_readme(reader: Visitor) -> None:
    """With a round picked that accepted all it could, on one line; written only where it is asked for."""
    from playwright.sync_api import expect

    reader.page.locator("#live .round:has(.d3)").filter(has_not_text=re.compile(r"\n")).first.click()
    expect(reader.page.locator("#tree figcaption")).to_have_text(
        re.compile(r"[3-6] accepted, [4-7] tokens from one forward")
    )
    reader.page.mouse.move(0, 0)
    picture = reader.page.screenshot(full_page=True, animations="disabled")
    assert len(picture) < 400_000
    if out := os.environ.get("SPACE_PICTURE"):
        Path(out).write_bytes(picture)


def test_stop_ends_both_answers_and_the_next_question_is_answered(visitor: Visitor) -> None:
    from playwright.sync_api import expect

    visitor.limit(512)
    visitor.ask(STORY)
    visitor.page.wait_for_selector("#live .plain .token")
    visitor.page.locator("#live .round").nth(1).click()
    expect(visitor.page.locator("#tree figcaption")).to_have_text(re.compile("^Round 2 of"))
    began = time.monotonic()
    visitor.page.locator("#stop").click()
    expect(visitor.page.locator("#notice [role=status]")).to_have_text("Stopped.")
    assert time.monotonic() - began < 5  # a second or two; more where other work shares the machine
    expect(visitor.page.locator("#live .cursor")).to_have_count(0)
    expect(visitor.page.locator("#stop")).to_be_disabled()
    assert int(re.findall(r"\d+", visitor.text("#live .eagle footer"))[0]) < 512
    assert "not compared" in visitor.text("#live .same")
    expect(visitor.page.locator("#tree figcaption")).to_have_text(re.compile("^Round 2 of"))  # as it was picked
    visitor.limit(16)
    visitor.ask("What is two plus two?")
    visitor.page.wait_for_selector("#earlier summary")
    visitor.has_answer()
    assert "two plus two" in visitor.text("#live .question")
    assert visitor.text("#earlier summary") == STORY


def test_two_visitors_each_get_their_own_answer(browser: Any, address: str) -> None:
    one, other = Visitor(browser, address), Visitor(browser, address)
    for visitor, question in ((one, "Name a fruit."), (other, "Name a colour.")):
        visitor.limit(32)
        visitor.ask(question)
    for visitor, question in ((one, "Name a fruit."), (other, "Name a colour.")):
        visitor.has_answer()
        assert visitor.text("#live .question") == question
        assert visitor.page.locator("#earlier summary").count() == 0
        visitor.page.locator("#live .round").first.click()
        visitor.page.wait_for_selector("#tree svg")
    answers = [visitor.text("#live .eagle .answer") for visitor in (one, other)]
    assert answers[0] != answers[1]
    one.leaves()
    other.leaves()


def test_whoever_waits_can_stop_and_whoever_leaves_holds_nobody_up(browser: Any, address: str) -> None:
    from playwright.sync_api import expect

    first, second, third = (Visitor(browser, address) for _ in range(3))
    first.limit(512)
    first.ask(STORY)
    first.page.wait_for_selector("#live .round")
    second.ask(PALINDROME)
    told = second.page.locator("#notice [role=status]")
    expect(told).to_have_text("Waiting for a free processor.")
    second.page.locator("#stop").click()
    expect(told).to_have_text("Stopped before it began.")
    expect(second.page.locator("#send")).to_be_enabled()
    assert first.page.locator("#live .cursor").count() == 2  # another's stop is no concern of theirs
    third.limit(16)
    third.ask("Name a fruit.")
    first.leaves()
    third.has_answer()
    second.leaves()
    third.leaves()


def test_a_head_of_ones_own(visitor: Visitor, pair_folders: Any) -> None:
    from playwright.sync_api import expect

    visitor.page.locator("#head-settings button").first.click()
    visitor.page.locator("#head input").fill("nobody/no-such-head")
    visitor.page.locator("#head input").press("Enter")
    visitor.ask(PALINDROME)
    notice = visitor.page.locator("#notice [role=alert]")
    expect(notice).to_have_text(re.compile("^No head could be read from 'nobody/no-such-head': give the Hub id"))
    visitor.page.wait_for_selector("#send:enabled")
    visitor.page.locator("#head input").fill(pair_folders.head)
    visitor.page.locator("#head input").press("Enter")
    visitor.ask("w1 w2 w3")
    expect(notice).to_have_text(re.compile("names no target, neither in its config nor on its card: type"))
    visitor.page.wait_for_selector("#send:enabled")
    visitor.page.locator("#target textarea").fill(pair_folders.target)
    visitor.limit(32)
    visitor.ask("w1 w2 w3")
    visitor.has_answer()
    assert re.search(r"w\d+", visitor.text("#live .plain .answer"))


def test_a_question_is_text_whatever_it_looks_like(visitor: Visitor) -> None:
    question = "<img src=x onerror='window.taken=1'> {{7*7}} ${window.taken=1} `\\"
    visitor.limit(16)
    visitor.ask(question)
    visitor.has_answer()
    assert visitor.text("#live .question") == question
    assert visitor.page.evaluate("window.taken") is None


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, address: str) -> None:
    visitor = Visitor(browser, address, (375, 800))
    visitor.limit(48)
    visitor.ask(PALINDROME)
    visitor.has_answer()
    visitor.page.locator("#live .round").nth(1).click()
    visitor.page.wait_for_selector("#tree svg")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 375
    visitor.leaves()


CONTRAST = """keys => keys.map(key => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const style = getComputedStyle(key);
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tokens_can_be_read_in_both_themes(browser: Any, address: str, theme: str) -> None:
    """4.5 is what WCAG AA asks of text."""
    visitor = Visitor(browser, address, theme=theme)
    visitor.page.wait_for_selector("#legend .token")
    contrasts = visitor.page.locator("#legend .token").evaluate_all(CONTRAST)
    assert len(contrasts) == 6
    assert min(contrasts) >= 4.5, contrasts
    visitor.leaves()
