"""The card of a head: its `README.md`, rendered from the files beside it.

Metadata for the Hub (the target, tags, licence, results for its model index) and a page for readers, from one reading
of the folder. Every number on the page is a field of a file there, rounded; where no file tells, the page says so or
leaves the place out. `model_card.md` is the page, [`facts`] says what a folder holds.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from .. import release
from ..embedded import TARGET_ID
from ..evaluation.records import FEWEST_VERIFICATIONS
from ..whole_files import written_whole
from . import tables, tree_tables
from .evaluations import Evaluation, Row
from .facts import Facts, read_facts
from .methods import method_of

CARD = "README.md"
OURS = "hf-eagle3"  # the tag of cards that were rendered
TAGS = ("speculative-decoding", "draft-model", OURS)  # and the method's
_TEMPLATE = "model_card.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Of the two that the model index takes: field of a row, and what it is.
_METRICS = (
    ("acceptance_length", "Acceptance length (tokens per target forward, bonus included)"),
    ("ratio", "Tokens a second over plain generate's (median)"),
)


def render_card(folder: str | Path, repo_id: str | None = None, serve: str | None = None) -> str:
    """The card of the head in `folder`, as text; the same files give the same text.

    Args:
        folder: of the head, see `hf_eagle3.hub.facts`.
        repo_id: the head's id on the Hub, if it goes there; else what `card.yaml` says, else its folder's name.
        serve: the command that starts the engine whose layout the folder is in, if it is in one.

    Raises:
        ValueError: if the folder holds no head, or one of its files is not what its name says.
        OSError: if a file cannot be read.
    """
    from huggingface_hub import ModelCard

    facts = read_facts(folder, repo_id)
    metadata = card_data(facts).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{_page(facts, serve)}"))


def write_card(folder: str | Path, repo_id: str | None = None, serve: str | None = None) -> Path:
    """Writes `README.md` into the head's `folder`, whole or not at all, and says where it is; see [`render_card`]."""
    path = Path(folder) / CARD
    text = render_card(folder, repo_id, serve)
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
    return path


def is_by_hand(folder: str | Path) -> bool:
    """Whether the folder has a `README.md` that somebody wrote: it lacks the tag that every rendered one has."""
    path = Path(folder) / CARD
    return path.is_file() and OURS not in path.read_text(encoding="utf-8").split("\n---", 1)[0].split()


def is_current(folder: str | Path, repo_id: str | None = None) -> bool:
    """Whether `README.md` is what the files beside it say; see [`render_card`]."""
    path = Path(folder) / CARD
    return path.is_file() and path.read_bytes() == render_card(folder, repo_id).encode()


def card_data(facts: Facts) -> Any:
    """The metadata of a card: a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    words, target, results = facts.words, target_of(facts), eval_results(facts)
    base = base_head_of(facts) if facts.adapter else target
    return ModelCardData(
        base_model=base,
        base_model_relation=words.base_model_relation if base else None,
        language=words.language,
        license=words.license,
        license_name=words.license_name,
        license_link=words.license_link,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[method_of(facts.config, facts.adapter).tag, *TAGS, *words.tags],
        datasets=words.datasets,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def target_of(facts: Facts) -> str | None:
    """The Hub id of the target; None where neither `card.yaml` nor the recipe tells one."""
    if facts.words.base_model is not None:
        return facts.words.base_model
    if "target" not in facts.recipe:
        return None
    named = facts.recipe["target"]
    return TARGET_ID if named is None else _hub_id(named)  # a recipe that names no target means the embedded one


def base_head_of(facts: Facts) -> str | None:
    """The Hub id of the head that an adapter belongs to; None where its config names a folder, or nothing."""
    return _hub_id(facts.config.get("base_model_name_or_path"))


def _hub_id(named: Any) -> str | None:
    return named if isinstance(named, str) and _HUB_ID.fullmatch(named) and not Path(named).exists() else None


def eval_results(facts: Facts) -> list[Any]:
    """The model index: acceptance length and ratio of every file of questions at every temperature, file by file."""
    results = [
        _result(facts, each, row, metric, name)
        for each in facts.evaluations
        if not each.lossless
        for row in each.rows
        if not row.together
        for metric, name in _METRICS
        if getattr(row, metric) is not None
    ]
    files = [result.unique_identifier for result in results]
    return sorted(results, key=lambda result: files.index(result.unique_identifier))  # as the index holds them


def _result(facts: Facts, evaluation: Evaluation, row: Row, metric: str, name: str) -> Any:
    from huggingface_hub import EvalResult

    how, known = evaluation.conditions, facts.words.questions.get(row.name, {})
    told = {
        "temperature": row.temperature,
        "questions": row.questions,
        "max_new_tokens": how.new_tokens,
        "dtype": how.dtype,
        "machine": tables.machine(how) or None,
    }
    return EvalResult(
        task_type="text-generation",
        dataset_type=known.get("dataset", row.name),
        dataset_name=known.get("name", row.name),
        dataset_config=known.get("config"),
        dataset_split=known.get("split"),
        metric_type=metric,
        metric_value=round(getattr(row, metric), 4),
        metric_name=f"{name}, temperature {row.temperature:g}",
        # Here and not with the data set, whose results the Hub's form holds together whatever they were measured at.
        metric_args={field: value for field, value in told.items() if value is not None},
    )


def _page(facts: Facts, serve: str | None) -> str:
    from jinja2 import Environment, StrictUndefined

    text = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(text).render(_view(facts), serve=serve)


def _view(facts: Facts) -> dict[str, Any]:
    """What the page shows, in strings."""
    target = target_of(facts)
    timed = [each for each in facts.evaluations if each.rows and not each.lossless]
    swept = [each for each in facts.evaluations if each.shapes]
    return {
        "name": facts.name,
        "id": facts.repo_id or facts.name,
        "target": target,
        "method": method_of(facts.config, facts.adapter),
        "adapter": facts.adapter,
        "base": base_head_of(facts),
        "install": release.INSTALL_COMMAND,
        "words": facts.words.written(_facts_for_words(facts)),
        "speeds": [_speed(facts, each, temperature) for each in timed for temperature in each.temperatures],
        "fewest": FEWEST_VERIFICATIONS,
        "missing": tables.missing(facts),
        "agreement": tables.agreement(facts),
        "lossless": tables.agreement_table(facts),
        "lengths": tables.lengths_table(facts),
        "sweeps": [_sweep(each) for each in swept],
        "costs": tree_tables.cost_table(swept),
        "levels": tree_tables.level_table(swept),
        "contexts": sorted({each.costs.context for each in swept if each.costs and each.costs.context}),
        "head": tables.head_table(facts, target),
        "training": tables.training_table(facts.training),
        "settings": tables.settings_table(facts.recipe),
        "provenance": tables.provenance_table(facts),
    }


def _speed(facts: Facts, evaluation: Evaluation, temperature: float) -> dict[str, str]:
    where = ", ".join(filter(None, (evaluation.conditions.dtype, tables.machine(evaluation.conditions))))
    return {
        "title": f"Temperature {temperature:g}" + (f", {where}" if where else ""),
        "told": tables.told(evaluation),
        "table": tables.speed_table(facts, evaluation, temperature),
        "positions": tables.position_table(facts, evaluation, temperature),
    }


def _sweep(evaluation: Evaluation) -> dict[str, str]:
    table, choice = tree_tables.sweep_table(evaluation), tree_tables.choice(evaluation)
    return {"told": tables.told(evaluation), "table": table, "choice": choice}


def _facts_for_words(facts: Facts) -> dict[str, Any]:
    """What paragraphs of `card.yaml` may ask for."""
    return {
        "name": facts.name,
        "config": facts.config,
        "training": facts.training,
        "recipe": facts.recipe,
        "weights": {} if facts.weights is None else asdict(facts.weights),
        "evaluation": {Path(each.file).stem: each.record for each in facts.evaluations},
    }
