"""Whether a layout can say all of a head, by the table for its kind; and those tables in Markdown, for the docs.

Knows nothing of files.
"""

from __future__ import annotations

import re
from typing import Any

from packaging.version import Version

from ..configuration_eagle3 import Eagle3Config
from .conventions import READERS, Case, Convention, Table
from .conventions_eagle1 import EAGLE1
from .conventions_eagle3 import EAGLE3

# By the `model_type` of a head's config.
TABLES: dict[str, Table] = {table.kind.model_type: table for table in (EAGLE3, EAGLE1)}


def check(case: Case, layout: str, engine_version: str | None = None) -> None:
    """Refuse a head that readers of `layout` would not compute as it is.

    Raises:
        ValueError: naming the first convention that the layout cannot say, and the layouts that can say this head; or
            those that readers older than `engine_version` has to be would pass over.
    """
    table = TABLES[case.config.model_type]
    _refuse_unknown(case, layout, table)
    held = [convention for convention in table.conventions if convention.holds(case)]
    for convention in held:
        why = convention.cell(layout).problem(case)
        if why:
            able = [name for name in table.layouts if not any(each.cell(name).problem(case) for each in held)]
            instead = f"export it to {' or '.join(able)}" if able else "keep it in the layout of hf-eagle3"
            raise ValueError(f"This head {_told(convention, case)}, but {READERS[layout]} {why}; {instead}.")
    least = Version(engine_version or "0")
    late = [convention for convention in held if Version(convention.cell(layout).since or "0") > least]
    if late:
        since = max((convention.cell(layout).since for convention in late), key=Version)
        told = ", ".join(_told(convention, case) for convention in late)
        raise ValueError(
            f"This head {told}, which {READERS[layout]} heeds from version {since} on and older ones pass over in "
            f"silence; pass `engine_version={since!r}` (`--engine-version {since}`) if what will read it is as new as "
            "that."
        )


def _told(convention: Convention, case: Case) -> str:
    return f"{convention.told.format(**_words(case))} (`{convention.fields[0]}`)"


def _refuse_unknown(case: Case, layout: str, table: Table) -> None:
    """What the table does not know, a later kind of head, is never exported without it."""
    plain, config = table.kind(), case.config
    known = table.fields | {"model_type", "keys_to_ignore_at_inference"}
    fields = [
        f"{name}={getattr(config, name)!r}"
        for name in table.kind.__annotations__
        if name not in known and getattr(config, name) != getattr(plain, name)
    ]
    unknown = fields + [name for name in case.tensors if not re.fullmatch(table.tensors, name)]
    if unknown:
        raise ValueError(
            f"This head has {', '.join(unknown)}, which the layout {layout!r} is not known to say; keep it in the "
            "layout of hf-eagle3."
        )


def _words(case: Case) -> dict[str, Any]:
    config = case.config
    words = {"layers": config.num_hidden_layers, "activation": config.hidden_act, "rope": config.rope_parameters}
    if isinstance(config, Eagle3Config):
        words |= {"boundaries": case.boundaries or "by default", "count": config.num_target_boundaries}
    return words | {"window": config.sliding_window}


def markdown(table: Table) -> str:
    """The conventions by layouts, as a Markdown table."""
    rows = [["a head that ...", *(f"`{name}`" for name in table.layouts)], ["---"] * (1 + len(table.layouts))]
    for convention in table.conventions:
        told = convention.told.format_map(_ELLIPSES)
        cells = (convention.cell(layout) for layout in table.layouts)
        rows.append([f"{told} (`{convention.fields[0]}`)", *(cell.says for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


_ELLIPSES = dict.fromkeys(("boundaries", "window"), "...") | {
    "count": "more or fewer than 3",
    "layers": "several",
    "activation": "other than silu",
    "rope": "of other kinds or parameters",
}
