"""Personal data in a text: e-mail, phone, card, bank account, national ids, public IP addresses, and names.

The patterns and checksums are those of presidio, called without its language pipeline: nothing is downloaded. Names
take a spaCy model, and are looked for where one is installed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

_SCORE = 0.5  # of presidio, from which a pattern needs no word of context to be believed
_VERSION = re.compile(r"(version|release|\bv|==|>=|<=|~=)\W*$", re.IGNORECASE)
# Patterns with a checksum or a form that ordinary numbers do not have.
_NATIONAL = (
    "UsSsnRecognizer", "UsItinRecognizer", "UkNinoRecognizer", "EsNifRecognizer", "EsNieRecognizer",
    "ItFiscalCodeRecognizer", "PlPeselRecognizer", "FiPersonalIdentityCodeRecognizer", "SgFinRecognizer",
    "InAadhaarRecognizer", "InPanRecognizer", "KrRrnRecognizer",
)  # fmt: skip
_PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "BR", "AU", "CN", "JP")


class PersonalData:
    """Finds kinds of personal data in texts.

    Raises:
        ImportError: if presidio is not installed.
    """

    def kinds(self, text: str) -> list[str]:
        """What `text` holds, such as `["EMAIL_ADDRESS", "PERSON"]`; empty for most texts, and quick for them."""
        found: set[str] = set()
        if any(character.isdigit() or character in "@:" for character in text):
            found.update(self._patterns(text))
        if self.names is not None:
            found.update("PERSON" for entity in self.names(text).ents if entity.label_ in ("PERSON", "PER"))
        return sorted(found)

    @cached_property
    def names(self) -> Any:
        """A spaCy pipeline that knows names, if a model is installed."""
        import spacy

        models = sorted(spacy.util.get_installed_models())
        return spacy.load(models[0]) if models else None

    def _patterns(self, text: str) -> Iterator[str]:
        for recogniser in self._recognisers:
            for result in recogniser.analyze(text, recogniser.supported_entities, None):
                start, end = result.start, result.end
                if _believed(result.entity_type, result.score, text[start:end], text[:start]):
                    yield result.entity_type

    @cached_property
    def _recognisers(self) -> list[Any]:
        try:
            from presidio_analyzer import predefined_recognizers as known
            from tldextract import TLDExtract
        except ImportError as error:
            raise ImportError(
                "Personal data is looked for by presidio-analyzer, which is not installed: pip install "
                "'hf-eagle3[train]', or keep such rows with --keep-personal-data."
            ) from error
        suffixes = TLDExtract(suffix_list_urls=())  # the list that is installed; presidio's default fetches one

        class Email(known.EmailRecognizer):
            def validate_result(self, pattern_text: str) -> bool:
                return bool(suffixes(pattern_text.split("@")[-1]).suffix)

        phone = known.PhoneRecognizer(supported_regions=_PHONE_REGIONS, leniency=1)
        always = [Email(), phone, known.CreditCardRecognizer(), known.IbanRecognizer(), known.IpRecognizer()]
        return [*always, *(getattr(known, name)() for name in _NATIONAL)]


def _believed(kind: str, score: float, match: str, before: str) -> bool:
    """Whether a match is personal: not a plain number, a version, or an address that names no machine."""
    if kind == "PHONE_NUMBER":  # scored low by presidio whatever it looks like
        groups = re.findall(r"\d+", match)
        grouped = len(groups) > 2 and min(map(len, groups[1:])) > 1  # neither one integer nor a count from 1 to 10
        return match.startswith("+") or (grouped and not re.search(r"[=*/]", match))
    if kind == "IP_ADDRESS":
        if ":" in match and (match.count(":") < 3 or not re.search(r"\d", match)):
            return False  # a::b in C++
        try:
            public = ipaddress.ip_address(match.strip("[]")).is_global
        except ValueError:
            return False
        return public and not _VERSION.search(before)
    return score >= _SCORE
