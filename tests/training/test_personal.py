"""Personal data: found in its usual shapes, and not in the numbers of maths, code and chat.

Numbers are made up or the published examples of their kind; addresses belong to nobody in particular.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_eagle3.data import personal
from hf_eagle3.data.personal import PersonalData

FINDER = PersonalData()

FOUND = {
    "EMAIL_ADDRESS": [
        "Write to anna.berg@example.org about the flat.", "mail: JOHN_SMITH+x@mail.company.co.uk",
        "Ask müller@bücher.de.",
    ],
    "PHONE_NUMBER": [
        "My number is +49 30 901820, call me.", "+1 (650) 253-0000", "Ring us on +44 20 7946 0958.",
        "Phone: +33 1 42 68 53 00", "Call (212) 555-2368 after six.", "It is 212-555-2368.", "It is 212.555.2368.",
        "my phone 2125552368", "Mein Handy: 0151 23456789", "Reach me at 07700 900123 tonight.",
        "020 7946 0958 is the office.", "Tel. 01 42 68 53 00", "Mi móvil es 612 34 56 78", "call 98765 43210",
        "(11) 91234-5678", "03-1234-5678", "我的手机是13800138000", "0412 345 678 after work",
    ],
    "CREDIT_CARD": [
        "Pay with 4111 1111 1111 1111 please.", "5500-0000-0000-0004", "Amex 378282246310005",
        "2223 0031 2200 3222", "My card: 4111111111111111", "4111111111111111, cvv 123",
    ],
    "IBAN_CODE": ["The account is DE89 3704 0044 0532 0130 00.", "GB29NWBK60161331926819"],
    "US_SSN": ["His is 536-90-4399.", "social security number 536904399", "SSN 536 90 4399"],
    "US_ITIN": ["912-70-1234", "ITIN 912701234"],
    "UK_NINO": ["She has AB 12 34 56 C.", "ab123456c is my national insurance number"],
    "UK_NHS": ["NHS number 943 476 5919"],
    "ES_NIF": ["12345678Z is mine."],
    "ES_NIE": ["Mine is X1234567L."],
    "IT_FISCAL_CODE": ["Her code is RSSMRA85T10A562S."],
    "PL_PESEL": ["PESEL 44051401359"],
    "FI_PERSONAL_IDENTITY_CODE": ["131052-308T"],
    "SG_NRIC_FIN": ["S1234567D"],
    "IN_PAN": ["ABCPE1234F"],
    "IN_AADHAAR": ["Aadhaar 2341 2341 2346"],
    "KR_RRN": ["850101-1234567"],
    "DE_TAX_ID": ["Steueridentifikationsnummer: 86095742719"],
    "IP_ADDRESS": [
        "The server 93.184.216.34 is mine.", "My IP is 17.42.23.11.", "Block 203.5.113.0/24 now.",
        "It answers at 2606:2800:220:1:248:1893:25c8:1946 now.", "2a00:1450:4001::5",
    ],
}  # fmt: skip

# Each with the digits of something personal, and innocent.
HARMLESS = [
    # maths
    "What is 0 / 532269374?", "Maria has 12 apples and buys 30 more for $4 each. How many has she now?",
    "What is 4536271890 divided by 12?", "479001600 is 12!", "What is 44051401359 + 86095742719?",
    "234123412346 * 2", "0.30000000000000004", "3.14159265358979323846", "4.111111111111111",
    "Is 4111111111111111 prime?", "Add up 1234 5678 9012 3452.", "Add 5 + 4930901820.",
    "Factor 943476591 and 943476592.",
    "A train travels 1200 miles in 15 hours; how far in 7?", "2147483648 4294967296 18446744073709551616",
    "Compute 123-456-789 + 1.", "12 345 678 people live in 987 654 321 houses.", "912 345 678 stars",
    "1,234,567,890 or 1.000.000.000 or $1 234 567.89", "What is the ratio 3:4:5?", "tax of 30% on 912701234",
    "10 20 30 40 50 60 70 80", "01 02 03 04 05", "38. 39. 40. 41. 42. 43. 44. 45. 46. 47. 48. 49.",
    "Count from 1 2 3 4 5 6 7 8 9 10.", "[[1, 2, 3], [4, 5, 6], [7, 8, 9]]", "0110 1001 0110 0101",
    # code
    "def f(x: int) -> int:\n    return x * 31 + 7", "numbers = [10, 20, 30, 40, 50, 60]", "call f(1234567890)",
    "return 2125552368 + 1", "x = 2**31 - 1 = 2147483647", "0xDEADBEEF 0x7fffffff", "0b0110100101",
    "Use std::vector<int>, a::b and dead::beef in C++.", "@dataclass\nclass A: ...", "q = x @ w.T", "y = x@w",
    "git clone git@github.com:org/repo.git", "npm i react@18.2.0",
    "pip install torch==2.13.0 transformers==5.23.0.11", "Upgrade to version 1.2.3.4 of the package, please.",
    "libfoo-1.2.3.140.tar.gz", "from 7.3.31.6 to 7.3.31.7", "section 3.2.1.10 says", "build 10.0.19.145",
    "sha 3b18e512dba79e4c8300dd08aeb37f8e728b8dad", "uuid 123e4567-e89b-12d3-a456-426614174000",
    # networks
    "The server listens on 127.0.0.1:8080 and 192.168.0.1.", "ping 8.8.8.8", "198.51.100.7 is in no use",
    "2001:db8::1 and fe80::1 and ::1", "MAC 00:1A:2B:3C:4D:5E", "RGB 255.255.255",
    # dates, URLs and the rest
    "In 1945 the war ended, and in 1989 the wall fell.", "Meet me on 24.11.2026 at 15:30.",
    "On 08.07.1961 at 08:27:22",
    "2023-01-22 12:30:52", "2023-01-22T12:30:52.123456Z", "20230122 123052", "1697040000123 ms since 1970",
    "The years 1990-1995 and 2000-2005", "scores of 100-98, 88-90 and 102-99",
    "See https://example.org/docs/page?id=1234567890 for details.", "ISBN 978-3-16-148410-0", "ASIN B08N5WRWNW",
    "smith2020a said", "order ABC1234567890", "security code 123456780",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_found(kind: str, text: str) -> None:
    assert kind in FINDER.kinds(text)
    assert kind in FINDER.kinds(f"Once upon a time.\n{text}\nThe end.")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text: str) -> None:
    assert FINDER.kinds(text) == []


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(-(10**19), 10**19), min_size=2, max_size=2), st.sampled_from("+-*/"))
def test_integers_are_never_personal(numbers: list[int], sign: str) -> None:
    """Whatever checksum they pass."""
    assert FINDER.kinds(f"What is {numbers[0]} {sign} {numbers[1]}?") == []


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=4))
def test_decimals_are_never_personal(numbers: list[float]) -> None:
    assert FINDER.kinds(f"Sort {numbers} and round {numbers[0]}") == []


def test_all_kinds_of_a_text_are_told() -> None:
    text = "Mail anna@example.org or call +49 30 901820, and anna@example.org again."
    assert FINDER.kinds(text) == ["EMAIL_ADDRESS", "PHONE_NUMBER"]


@pytest.mark.parametrize(
    "text",
    [
        "Write to me: anna.berg@example.org, please", "(anna@example.org)", "mailto:anna@mail.example.co.uk?subject=x",
        "x" * 4000 + "@example.org", "a." * 4000 + "a@example.org", "a@b@example.org", "@anna @berg anna@example.org.",
        "git@github.com:org/repo.git and anna@example.org", "a@b.c " * 800 + "anna@example.org",
        "anna@" + "sub." * 20 + "example.org", "anna@my-host.example.org-", "<anna@example.org>;<b@example.org>",
    ],
)  # fmt: skip
def test_addresses_among_other_signs(text: str) -> None:
    assert FINDER.kinds(text) == ["EMAIL_ADDRESS"]


@pytest.mark.parametrize("apart", range(50, 80))
def test_no_address_is_cut_out_of_another(apart: int) -> None:
    assert FINDER.kinds(f"git@github.com:org/{'r' * apart}.git git@github.com:org/repo.git") == []


@pytest.mark.parametrize(
    "text", ["a." * 4000 + "@", "a." * 4000 + "@b.notadomain", "a@" + "a-" * 4000, "@a.b" * 500, "a" * 8000 + "@"]
)
def test_presidio_never_sees_long_runs_of_signs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pattern for addresses takes the square of their length: 5 s for 8,000 signs as a.a.a...@."""
    seen = []
    monkeypatch.setattr(personal, "_holds", lambda recogniser, weigh, text: seen.append(len(text)))
    assert FINDER.kinds(text) == []
    assert max(seen, default=0) <= 64 + 1 + 507


OFFLINE = """
import socket
asked = []
def refuse(host, *_, **__):
    asked.append(host)
    raise OSError(host)
socket.getaddrinfo = refuse
from hf_eagle3.data.personal import PersonalData
finder = PersonalData()
print(finder.kinds("Write to a.b@some-place.co.uk"), finder.kinds("No address: a@b.notadomain"), asked)
"""


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """Not even the list of domain endings, where none was fetched before."""
    environment = {**os.environ, "TLDEXTRACT_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "['EMAIL_ADDRESS'] [] []"


def test_most_texts_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def light(name: str, *args: Any, **given: Any) -> Any:
        assert name.partition(".")[0] not in ("presidio_analyzer", "spacy", "tldextract"), name
        return whole(name, *args, **given)

    finder = PersonalData()
    monkeypatch.setattr(builtins, "__import__", light)
    assert finder.kinds("Tom has 12 apples and 7 pears: how many of a::b?") == []
    assert finder.names_by is None
    with pytest.raises(AssertionError):
        finder.kinds("anna@example.org")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ImportError, match=r"presidio-analyzer, which is not installed: pip install 'hf-eagle3\[train"):
        PersonalData()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> PersonalData:
    """As if two models were installed: one without names, and one that knows two people."""
    import spacy

    knowing = spacy.blank("en", meta={"name": "names"})
    people = [{"label": "PERSON", "pattern": name} for name in ("Anna Berg", "Tom")]
    knowing.add_pipe("entity_ruler").add_patterns([*people, {"label": "GPE", "pattern": "New York"}])
    models = {"a_tagger": spacy.blank("en"), "en_names": knowing}
    asked = importlib.metadata.entry_points

    def entry_points(**given: Any) -> Any:
        own = [SimpleNamespace(name=name) for name in reversed(models)]
        return own if given.get("group") == "spacy_models" else asked(**given)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(spacy, "load", lambda name, exclude: models[name])
    return PersonalData()


def test_names_are_found_where_a_model_is(names: PersonalData) -> None:
    assert names.names_by == "en_names"
    assert names.kinds("A letter to Anna Berg") == ["PERSON"]
    assert names.kinds("Anna Berg has anna@example.org") == ["EMAIL_ADDRESS", "PERSON"]
    assert names.kinds("Tom has three apples") == []  # one word names nobody
    assert names.kinds("A trip to New York") == []
    assert FINDER.names_by is None
    assert FINDER.kinds("A letter to Anna Berg") == []
