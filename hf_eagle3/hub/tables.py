"""The tables and sentences of a card, each made of fields of [`Facts`]. What a field does not tell is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..embedded import public_name
from ..evaluation.records import FEWEST_VERIFICATIONS
from .evaluations import Conditions, Evaluation, Row, Sizes
from .facts import Facts

NOT_MEASURED = "not measured"
_EXACT, _HALF = ("float32", "float64"), ("bfloat16", "float16")
# Fields of `training.json` that stand in the table, those of early records included.
_TRAINED = (
    ("conversations", ("conversations",)),
    ("held-out conversations", ("held_out_conversations",)),
    ("answer tokens", ("answer_tokens",)),
    ("tokens seen, repeats included", ("tokens_seen",)),
    ("optimiser steps", ("steps", "optimizer_steps")),
    ("epochs", ("epochs",)),
    ("step that was kept", ("best_step",)),
    ("acceptance length on held-out prompts", ("acceptance_length",)),
    ("target's probability that the draft vocabulary holds", ("draft_vocabulary_coverage",)),
    ("processes", ("processes",)),
    ("device", ("device",)),
    ("versions", ("versions",)),
)
_SHARES = {"draft_vocabulary_coverage"}
_PLACES = {"features_dir", "output_dir", "logging_dir"}  # of the machine that it was trained on


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table; with `numbers` all columns but the first are set to the right."""
    rule = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in (head, rule, *rows))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def fixed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def spread(middle: float | None, low: float | None, high: float | None) -> str:
    """A median and its quartiles."""
    if middle is None or low is None or high is None:
        return fixed(middle)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def machine(conditions: Conditions) -> str:
    """What it ran on; empty where the record does not say."""
    if conditions.on_gpu:
        return conditions.gpu or conditions.device or ""
    return conditions.cpu or conditions.device or ""


def tree_in_words(sizes: Sizes) -> str:
    """ "9 nodes, 3 levels, top-4", and where its levels end early."""
    words = "{} nodes, {} levels, top-{}".format(*sizes)
    return words + "".join(f", levels ended below {threshold:g}" for threshold in sizes[3:])


def tree_in_numbers(sizes: Sizes | None) -> str:
    """ "9, 3, 4", and where its levels end early; empty where that is not told."""
    if not sizes:
        return ""
    return ", ".join(map(str, sizes[:3])) + "".join(f", below {threshold:g}" for threshold in sizes[3:])


def told(evaluation: Evaluation) -> str:
    """How it was measured, in one sentence."""
    how, parts = evaluation.conditions, []
    parts.append(machine(how))
    if not how.on_gpu:
        parts += [f"{how.cores} cores" if how.cores else "", f"{how.threads} threads" if how.threads else ""]
    parts.append(f"{how.dtype} (emulated)" if how.dtype and how.native is False else how.dtype or "")
    if how.new_tokens:
        parts.append(f"answers of up to {how.new_tokens} new tokens")
    if evaluation.rows:
        parts.append(f"a tree of {tree_in_words(how.tree)}" if how.tree else "")
    return f"{', '.join(filter(None, parts))} (`{evaluation.file}`)."


def speed_table(facts: Facts, evaluation: Evaluation, temperature: float) -> str:
    rows = evaluation.rows_at(temperature)
    lookup = any(row.lookup_ratio is not None for row in rows)
    head = ["questions", "n", "acceptance length", "ratio to plain `generate`", *["prompt lookup"] * lookup]
    lines = []
    for row in rows:
        count = NOT_MEASURED if row.questions is None else str(row.questions)
        cells = [question_name(facts, row), count, fixed(row.acceptance_length), spread(row.ratio, row.low, row.high)]
        lines.append([*cells, *[fixed(row.lookup_ratio)] * lookup])
    return table(head, lines, numbers=True)


def position_table(facts: Facts, evaluation: Evaluation, temperature: float) -> str:
    """Empty where no row tells of positions."""
    rows = [row for row in evaluation.rows_at(temperature) if row.rates]
    if not rows:
        return ""
    most = max(len(row.rates) for row in rows)
    lines = [[question_name(facts, row), *_rates(row), *[""] * (most - len(row.rates))] for row in rows]
    return table(["level", *(str(level + 1) for level in range(most))], lines, numbers=True)


def _rates(row: Row) -> list[str]:
    asked = row.asked or [FEWEST_VERIFICATIONS] * len(row.rates)
    pairs = zip(row.rates, asked, strict=True)
    return [f"{rate:.2f}" if count >= FEWEST_VERIFICATIONS else f"({rate:.2f})" for rate, count in pairs]


def question_name(facts: Facts, row: Row) -> str:
    return "all together" if row.together else facts.words.questions.get(row.name, {}).get("name", row.name)


def compared(facts: Facts) -> list[tuple[Evaluation, Row]]:
    """Every record of greedy answers that were compared with plain ones, as the row of all its questions."""
    pairs = [(each, each.together_at(0.0)) for each in facts.evaluations]
    return [(each, row) for each, row in pairs if row and (row.identical or row.near_ties or row.mismatches)]


def agreement(facts: Facts) -> str:
    """Whether greedy answers were those of plain `generate`, and how that was found out."""
    pairs = compared(facts)
    sentences = ["Greedy answers with the head and without were compared token by token."] if pairs else []
    sentences.append(_exact_agreement([row for each, row in pairs if each.conditions.dtype in _EXACT]))
    half = [row for each, row in pairs if each.conditions.dtype in _HALF]
    if any(row.mismatches for row in half):
        sentences.append("In half precision some differ by more than rounding: the column `wrong` counts them.")
    elif any(row.near_ties for row in half):
        sentences.append("In half precision a batched forward may flip a near tie, as in any batched decoding.")
    return " ".join(sentences)


def _exact_agreement(rows: Sequence[Row]) -> str:
    """Of answers in float32; it claims nothing that the counts do not say of every question."""
    if not rows:
        return "Whether they are the same in float32 was not checked with this head."
    if any(row.mismatches for row in rows):
        return "In float32 some answers are **not** those of plain `generate`: the column `wrong` counts them."
    if all(row.questions == row.identical for row in rows):
        return "In float32 every one came out the same, all tokens of it."
    if all(row.questions == (row.identical or 0) + (row.near_ties or 0) for row in rows):
        return (
            "In float32 they are the same, but for some that rounding flipped (near ties) and that agree in float64."
        )
    return "The float32 records do not tell of every answer how it came out."


def agreement_table(facts: Facts) -> str:
    """Empty where nothing was compared."""
    lines = []
    for each, row in compared(facts):
        counts = (row.questions, each.conditions.new_tokens, row.identical, row.near_ties, row.mismatches)
        cells = (NOT_MEASURED if count is None else str(count) for count in counts)
        how = [each.conditions.dtype or "", tree_in_numbers(each.conditions.tree)]
        lines.append([f"`{each.file}`", *how, *cells, fixed(row.acceptance_length)])
    head = (
        "record",
        "dtype",
        "tree",
        "questions",
        "new tokens",
        "identical",
        "near ties",
        "wrong",
        "acceptance length",
    )
    return table(head, lines, numbers=True) if lines else ""


def lengths_table(facts: Facts) -> str:
    """Acceptance lengths by file of what was compared and not timed; empty where there is no such record."""
    records = [(each, [row for row in each.rows if not row.together]) for each in facts.evaluations if each.lossless]
    names = {row.name: question_name(facts, row) for _, rows in records for row in rows}
    lines = []
    for each, rows in records:
        lengths = {row.name: row.acceptance_length for row in rows if row.acceptance_length is not None}
        cells = [fixed(lengths[name]) if name in lengths else "" for name in names]
        mean = fixed(fmean(lengths.values())) if lengths else NOT_MEASURED
        lines.append([f"`{each.file}`", tree_in_numbers(each.conditions.tree), *cells, mean])
    head = ("record", "tree", *names.values(), "mean of these")
    return table(head, lines, numbers=True) if lines else ""


def provenance_table(facts: Facts) -> str:
    """Empty where there is no record."""
    lines = []
    for each in facts.evaluations:
        how = each.conditions
        packages = [f"{name} {version}" for name, version in how.packages.items()]
        versions = ", ".join([*([f"Python {how.python}"] if how.python else []), *packages])
        lines.append([f"`{each.file}`", machine(how) or "not told", versions or "not told", how.commit or "not told"])
    return table(("record", "machine", "versions", "commit of hf-eagle3"), lines) if lines else ""


def missing(facts: Facts) -> str:
    """What a reader may look for and nobody has measured, as a list in words."""
    timed = [each for each in facts.evaluations if each.rows and not each.lossless]
    if not timed:
        return ""
    lacking = []
    if not any(each.conditions.on_gpu for each in timed):
        lacking.append("a GPU")
    temperatures = {row.temperature for each in timed for row in each.rows}
    if not any(temperatures):
        lacking.append("sampling (a temperature above 0)")
    if 0.0 not in temperatures:
        lacking.append("greedy decoding (temperature 0)")
    if not any(row.rates for each in timed for row in each.rows):
        lacking.append("acceptance by position")
    return ", ".join(lacking)


def head_table(facts: Facts, target: str | None) -> str:
    config, weights = facts.config, facts.weights
    rows = [("target", target)]
    if weights is not None:
        rows.append(("parameters", f"{weights.parameters / 1e6:.1f} M ({', '.join(weights.dtypes)})"))
        rows.append(("size", f"{weights.size / 1e6:.1f} MB"))
    if facts.adapter:
        rows += [("adapter of", _public(config.get("base_model_name_or_path"))), ("rank", _value(config.get("r")))]
    names = {
        "decoder layers": "num_hidden_layers",
        "width": "hidden_size",
        "attention heads": "num_attention_heads",
        "heads of keys and values": "num_key_value_heads",
        "width of the MLP": "intermediate_size",
        "target boundaries that it reads": "target_boundaries",
        "draft vocabulary": "draft_vocab_size",
        "vocabulary of the target": "vocab_size",
        "positions": "max_position_embeddings",
    }
    rows += [(label, _value(config.get(name))) for label, name in names.items()]
    if isinstance(config.get("own_embeddings"), bool):
        rows.append(("embeddings", "its own" if config["own_embeddings"] else "the target's, not saved here"))
    return table(("", ""), [(label, value) for label, value in rows if value])


def training_table(training: Mapping[str, Any]) -> str:
    """Empty where there is no record of the training."""
    lines = []
    for label, names in _TRAINED:
        name = next((name for name in names if training.get(name) is not None), None)
        value = None if name is None else training[name]
        text = f"{value:.1%}" if name in _SHARES and isinstance(value, float) else _value(value)
        if text:
            lines.append((label, text))
    return table(("", ""), lines) if lines else ""


def settings_table(recipe: Mapping[str, Any]) -> str:
    """All of a recipe but what was left unset and where things lay; empty where there is none."""
    lines = [(name, _setting(value)) for name, value in recipe.items() if value is not None and name not in _PLACES]
    return table(("setting", "value"), lines) if lines else ""


def _setting(value: Any) -> str:
    """As it was set: exact, and without the folders of the machine."""
    if isinstance(value, str):
        return _public(value)
    return json.dumps(value, ensure_ascii=False)


def _public(value: Any) -> str:
    """A name without the folders of the machine that it was used on."""
    if not isinstance(value, str):
        return ""
    named = public_name(value)
    return Path(named).name if Path(named).is_absolute() or named.startswith(("~", ".")) else named


def _value(value: Any) -> str:
    """A value in words; empty for what is not told."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, part in value.items() if (inner := _value(part)))
    if isinstance(value, list):
        return ", ".join(filter(None, map(_value, value)))
    return str(value)
