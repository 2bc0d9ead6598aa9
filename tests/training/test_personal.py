"""Personal data: found in its usual shapes, and not in the numbers of maths, code and chat."""

from __future__ import annotations

import socket

import pytest

from hf_eagle3.data.personal import PersonalData

FINDER = PersonalData()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to anna.berg@example.org about the flat.", "EMAIL_ADDRESS"),
        ("My number is +49 30 901820, call me.", "PHONE_NUMBER"),
        ("Call (212) 555-2368 after six.", "PHONE_NUMBER"),
        ("Ring us on +44 20 7946 0958.", "PHONE_NUMBER"),
        ("Pay with 4111 1111 1111 1111 please.", "CREDIT_CARD"),
        ("The account is DE89 3704 0044 0532 0130 00.", "IBAN_CODE"),
        ("His social security number: 536-90-4399.", "US_SSN"),
        ("DNI 12345678Z is mine.", "ES_NIF"),
        ("Her code is RSSMRA85T10A562S.", "IT_FISCAL_CODE"),
        ("The server 93.184.216.34 is mine.", "IP_ADDRESS"),
        ("It answers at 2606:2800:220:1:248:1893:25c8:1946 now.", "IP_ADDRESS"),
    ],
)
def test_found(text: str, kind: str) -> None:
    assert kind in FINDER.kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "Maria has 12 apples and buys 30 more for $4 each. How many has she now?",
        "What is 4536271890 divided by 12?",
        "A train travels 1200 miles in 15 hours; how far in 7?",
        "In 1945 the war ended, and in 1989 the wall fell.",
        "def f(x: int) -> int:\n    return x * 31 + 7",
        "Upgrade to version 1.2.3.4 of the package, please.",
        "pip install torch==2.13.0 transformers==5.23.0",
        "See https://example.org/docs/page?id=12345 for details.",
        "The server listens on 127.0.0.1:8080 and 192.168.0.1.",
        "Meet me on 24.11.2026 at 15:30.",
        "numbers = [10, 20, 30, 40, 50, 60]",
        "Compute 123-456-789 + 1.",
        "Use std::vector<int> and a::b in C++.",
        "What is the ratio 3:4:5?",
        "Count from 1 2 3 4 5 6 7 8 9 10.",
    ],
)
def test_harmless(text: str) -> None:
    assert FINDER.kinds(text) == []


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the list of domain endings."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert PersonalData().kinds("Write to a.b@some-place.co.uk") == ["EMAIL_ADDRESS"]
    assert PersonalData().kinds("Not an address: a@b.notadomain") == []
