"""Every catalogued format of draft heads, a line each: the layout and conventions taken, and what became of it.

`python tests/helpers/layouts_report.py [--departures]`, or `make layouts`. Each checkpoint is synthesised in a
temporary folder, loaded, and its logits are compared with a plain torch reference of that format, written by somebody
who had not seen the loader. The exit status is 1 if a format differs, or is refused though it should load.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `helpers` is no package of ours

from transformers.utils import logging

from helpers.checkpoint_catalogue import Variant, variants
from helpers.layout_verdicts import Verdict, judge


def cases(departures: bool) -> Iterator[tuple[Variant, tuple[str, ...]]]:
    """The catalogued variants as they are, or with each of their named departures as well."""
    for variant in variants():
        if not variant.refuse:
            yield variant, ()
            yield from ((variant, (option,)) for option in variant.options if departures)


def line(verdict: Verdict) -> str:
    name = "-".join((verdict.made.variant.id, *verdict.made.options))
    told = f"{verdict.taken}; " if verdict.taken else ""
    return f"{name:<36} {told}{verdict}".replace(f"{verdict.made.folder} ", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--departures", action="store_true", help="with the named departures of each format as well")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    verdicts = []
    for variant, options in cases(parser.parse_args(arguments).departures):
        with tempfile.TemporaryDirectory() as folder:
            verdicts.append(judge(variant, Path(folder), options))
        print(line(verdicts[-1]), flush=True)
    failed = sum(not verdict.good for verdict in verdicts)
    refused = sum(verdict.good and verdict.difference is None for verdict in verdicts)
    more = f"{refused} are refused as they should be, " if refused else ""
    matching = len(verdicts) - failed - refused
    print(f"{matching} of {len(verdicts)} load and match the reference, {more}{failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
