"""Personal data in a text: e-mail, phone, card, bank account, national ids, public IP addresses, and names.

Patterns and checksums are presidio's, called without its language pipeline: nothing is downloaded. What they match is
then weighed, because a prompt is full of numbers: an integer alone is never personal, whatever checksum it happens to
pass, and becomes so by the way it is written or by a word that says what it is. URLs and dates are not personal. Names
take a spaCy model, and are looked for where one is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..release import install_command

# Ids with a letter, or with hyphens where no other number has them: the form is enough.
_BY_FORM = (
    "UsSsn", "UsItin", "UkNino", "EsNif", "EsNie", "ItFiscalCode", "FiPersonalIdentityCode", "SgFin", "InPan", "KrRrn",
    "DeSocialSecurity",
)  # fmt: skip
# Plain integers with a checksum, which one integer in ten passes by chance: a word must say what they are.
_BY_WORD = (
    "PlPesel", "InAadhaar", "Nhs", "CaSin", "DeTaxId", "SePersonnummer", "ThTnin", "TrNationalId", "AuTfn",
    "ZaIdNumber",
)  # fmt: skip
# Where presidio's own words say too little: "tax" and "security" stand in many a sum.
_WORDS = {
    "US_SSN": ("ssn", "ssns", "social security"), "US_ITIN": ("itin", "taxid", "tin"),
    "CA_SIN": ("sin", "social insurance", "assurance sociale"),
}  # fmt: skip
_SCORE, _SCORE_IF_NAMED = 0.5, 0.05  # presidio's, from which a form is believed without and with such a word
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR", "AU", "CN", "JP", "NL", "PL", "SE")
_PHONE_WORDS = (
    "phone", "phones", "telephone", "tel", "cell", "cellphone", "mobile", "call", "whatsapp", "fax", "sms", "dial",
    "telefon", "telefonnummer", "handy", "handynummer", "teléfono", "móvil", "téléphone", "portable", "telefono",
    "cellulare", "telefone", "celular", "电话", "手机", "電話", "携帯",
)  # fmt: skip
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, Japanese, Chinese: words touch
_ADDRESS_WORDS = ("ip", "ipv4", "ipv6", "address", "host")
_DECIMAL_OR_DATE = re.compile(r"\d+[.,]\d+|\d{1,2}([-. /])\d{1,2}\1\d{2,4}|\d{4}([-. /])\d{1,2}\2\d{1,2}")
_CARD_WORDS = ("cards", "cvv", "cvc", "expires", "expiry", "maestro", "kreditkarte", "carte", "tarjeta", "carta")
_VERSION = re.compile(r"(version|release|build|section|chapter|[\w.]-|_|\bv|==|>=|<=|~=|\^|~)\W*$", re.IGNORECASE)
# What any of them but an address with an @ has: six digits close together, PAN's letters, or an IP address.
_MAY_HOLD = re.compile(
    r"(?:\d\w?\W{0,3}){6}|[A-Z]{5}\d{4}[A-Z]|(?:\d{1,3}\.){3}\d|\b[23][\da-f]{3}:[\da-f:]*:", re.IGNORECASE
)
# What may hold an address: at most 64 characters before the @ (RFC 5321, 4.5.3.1.1), and something like a domain
# behind it. Presidio's pattern alone takes seconds for a long text that is one run of such signs.
_AROUND_AT = re.compile(r"[^\s@]{1,64}@(?=(\w[\w-]{0,252}\.\w[\w.-]{0,252}))")
# Issuers and lengths of payment cards (ISO/IEC 7812): Visa, Mastercard, American Express, Diners, Discover, JCB,
# UnionPay and Maestro.
_CARD = re.compile(
    r"4\d{12}(\d{3})?|(5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|3(0[0-5]|[68]\d)\d{11}"
    r"|6(011|4[4-9]\d|5\d\d)\d{12}|35\d{14}|62\d{14}|(50|5[6-8]|6[37])\d{14}"
)
_ALLOCATED = ipaddress.ip_network("2000::/3")  # all global unicast addresses of IPv6 that IANA gave out
_NER_ONLY = ("parser", "lemmatizer", "attribute_ruler", "tagger", "morphologizer", "senter")
_MISSING = (
    f"Personal data is looked for by presidio-analyzer, which is not installed: {install_command('train')}, or "
    "keep such texts with personal=False (--keep-personal-data)."
)


@dataclass(frozen=True)
class _Match:
    """What presidio found, with presidio's `score`, and the text around it."""

    text: str
    before: str
    after: str
    score: float

    def named(self, words: Sequence[str], before: int = 60, after: int = 25) -> bool:
        """Whether one of `words` stands within so many characters of it."""
        near = f"{self.before[-before:]} {self.after[:after]}"
        whole = [word if _UNSPACED.search(word) else rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" for word in words]
        return re.search("|".join(whole), near, re.IGNORECASE) is not None


class PersonalData:
    """Finds kinds of personal data in texts. Libraries and models are loaded by the first text that needs them.

    Raises:
        ImportError: if presidio is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("presidio_analyzer") is None:
            raise ImportError(_MISSING)

    def kinds(self, text: str) -> list[str]:
        """What `text` holds, such as `["EMAIL_ADDRESS", "PERSON"]`; empty for most texts, and quick for them."""
        found: set[str] = set()
        if "@" in text and any(_holds(*self._email, around[0] + around[1]) for around in _AROUND_AT.finditer(text)):
            found.add("EMAIL_ADDRESS")
        if _MAY_HOLD.search(text):
            found.update(kind for kind, recogniser, weigh in self._numbers if _holds(recogniser, weigh, text))
        if self._named_entities is not None and self._names_somebody(text):
            found.add("PERSON")
        return sorted(found)

    @cached_property
    def names_by(self) -> str | None:
        """The installed spaCy model that names are looked for with; None if there is none, and none are looked for."""
        meta = getattr(self._named_entities, "meta", None)
        return f"{meta['lang']}_{meta['name']}" if meta else None

    @cached_property
    def _named_entities(self) -> Any:
        """The first installed spaCy pipeline that knows named entities."""
        # What spaCy itself asks; without a model its import is spared.
        for name in sorted(model.name for model in importlib.metadata.entry_points(group="spacy_models")):
            import spacy

            pipeline = spacy.load(name, exclude=list(_NER_ONLY))
            if "ner" in pipeline.pipe_names or "entity_ruler" in pipeline.pipe_names:
                return pipeline
        return None

    def _names_somebody(self, text: str) -> bool:
        """Whether somebody is named in full; Tom, who has three apples, is nobody."""
        entities = self._named_entities(text).ents
        return any(entity.label_ in ("PERSON", "PER") and len(entity.text.split()) > 1 for entity in entities)

    @cached_property
    def _email(self) -> tuple[Any, Callable[[Any, _Match], bool]]:
        from presidio_analyzer.predefined_recognizers import EmailRecognizer
        from tldextract import TLDExtract

        suffixes = TLDExtract(suffix_list_urls=())  # the list that came with it; the default would fetch one

        class Email(EmailRecognizer):
            def validate_result(self, pattern_text: str) -> bool:
                return bool(suffixes(pattern_text.split("@")[-1]).suffix)

        return Email(), _is_email

    @cached_property
    def _numbers(self) -> list[tuple[str, Any, Callable[[Any, _Match], bool]]]:
        """Kind, recogniser, and what weighs its matches."""
        from presidio_analyzer import Pattern
        from presidio_analyzer import predefined_recognizers as known

        phone = known.PhoneRecognizer(supported_regions=_REGIONS, leniency=1)
        second_mastercard = Pattern("Mastercard from 2017 on", r"\b2[2-7]\d\d[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b", 0.3)
        card = known.CreditCardRecognizer([*known.CreditCardRecognizer.PATTERNS, second_mastercard])
        weighed: list[tuple[Any, Callable[[Any, _Match], bool]]] = [
            (phone, _is_phone), (card, _is_card), (known.IbanRecognizer(), _is_formed),
            (known.IpRecognizer(), _is_address),
        ]  # fmt: skip
        weighed += [(getattr(known, f"{name}Recognizer")(), _is_formed) for name in _BY_FORM]
        weighed += [(getattr(known, f"{name}Recognizer")(), _is_named) for name in _BY_WORD]
        return [(recogniser.supported_entities[0], recogniser, weigh) for recogniser, weigh in weighed]


def _holds(recogniser: Any, weigh: Callable[[Any, _Match], bool], text: str) -> bool:
    for found in recogniser.analyze(text, recogniser.supported_entities, None):
        match = _Match(text[found.start : found.end], text[: found.start], text[found.end :], found.score)
        if weigh(recogniser, match):
            return True
    return False


def _is_email(_: Any, match: _Match) -> bool:
    return not match.text.startswith("git@")  # the address of a repository


def _is_formed(recogniser: Any, match: _Match) -> bool:
    """An id by its form: in capitals and whole, or with its name; what has no letters, with hyphens."""
    if re.search(r"\w$", match.before) or re.match(r"\w", match.after):
        return False
    if match.score >= _SCORE_IF_NAMED and match.named(_words_for(recogniser)):
        return True
    letters = re.search(r"[^\W\d]", match.text) is not None
    return match.score >= _SCORE and (match.text.isupper() if letters else "-" in match.text)


def _is_named(recogniser: Any, match: _Match) -> bool:
    """An id by the word for it."""
    whole = not re.search(r"\d$", match.before) and not re.match(r"\d", match.after)
    return whole and match.named(_words_for(recogniser))


def _words_for(recogniser: Any) -> Sequence[str]:
    return _WORDS.get(recogniser.supported_entities[0], recogniser.context)


def _is_card(recogniser: Any, match: _Match) -> bool:
    """A number with Luhn's checksum, of an issuer there is, written in groups or called a card."""
    digits = re.sub(r"\D", "", match.text)
    if match.score < _SCORE or _CARD.fullmatch(digits) is None or re.search(r"\d[.,]$", match.before):
        return False
    return digits != match.text or match.named((*recogniser.context, *_CARD_WORDS))


def _is_address(_: Any, match: _Match) -> bool:
    """An IP address of a machine on the public net: no version, no local or documentation address, no a::b of C++."""
    try:
        address = ipaddress.ip_interface(match.text.partition("%")[0]).ip
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_global and address in _ALLOCATED
    if not address.is_global or re.search(r"[\d.:]$", match.before) or re.match(r"\.?\d", match.after):
        return False
    if match.named(_ADDRESS_WORDS, 30, 10):
        return True
    # Versions and sections have small parts (and 8.8.8.8 is everybody's); of addresses, 2 in 100 have only such.
    return re.search(r"\d{3}", str(address)) is not None and not _VERSION.search(match.before)


def _is_phone(_: Any, match: _Match) -> bool:
    """A valid number that is written as one writes phone numbers, or called one."""
    if re.search(r"\d[.,]?$|[*/=^)\]]\s*$|\w\($", match.before) or re.match(r"\s*[*/=^]|[.,]?\d", match.after):
        return False  # a part of a sum, of a longer number, of code
    if match.text[0] == "(" and re.search(r"\w$", match.before):
        return False
    if re.match(r"\(?\+\d", match.text):
        return not re.search(r"[\d)]\s*$", match.before)
    if match.text[0] != "+" and match.named(_PHONE_WORDS, 30, 0):
        return True
    if _DECIMAL_OR_DATE.fullmatch(match.text):
        return False
    groups = re.findall(r"\d+", match.text)
    marked = match.text[0] in "0(" or re.search(r"\d[-.]\d", match.text) is not None
    if len(groups) < (2 if match.text[0] in "0(" else 3):
        return False
    thousands = len(groups[-1]) == 3 and not marked
    counted = len(set(map(len, groups))) == 1 and groups == sorted(groups)
    if thousands or counted or groups[0] == "0" or set("".join(groups)) <= {"0", "1"}:
        return False  # 12 345 678; 01 02 03 04 05; 0 - 4377846; 0110 1001
    return _grouped_as_phone(match.text)


def _grouped_as_phone(text: str) -> bool:
    """Whether its digits are grouped as in the country of the number."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    return any(PhoneNumberMatcher(text, region, Leniency.STRICT_GROUPING).has_next() for region in _REGIONS)
