"""What files and configs show without running the head: every problem, not only the first.

Each check is a small function of a [`Case`] that yields findings; a check whose piece could not be read is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..attention import backend_of
from ..cache import check_cache
from ..configuration_eagle3 import Eagle3Config
from ..head_files import Tensors
from .alternatives import could_be_ids
from .findings import Finding, Severity
from .subject import Subject, expected_shapes

# Norm weights of trained heads lie around one; a mean beyond these is no norm, or one that was never loaded.
NORM_RANGE = (0.02, 50.0)


@dataclass(frozen=True)
class Case:
    """A head that was opened and the target that it is to draft for.

    Args:
        config: the head's, as our loader takes it.
        tensors: canonical, as stored.
    """

    subject: Subject
    config: Eagle3Config
    tensors: Tensors
    target: PreTrainedModel

    @property
    def text(self) -> Any:
        """The config of the target's text decoder."""
        return self.target.config.get_text_config(decoder=True)


def run_checks(case: Case) -> Iterator[Finding]:
    """The findings of every check, in their order."""
    for check in CHECKS:
        yield from check(case)


def target_findings(target: PreTrainedModel) -> Iterator[Finding]:
    """What can be said of a target without a head: attention and cache."""
    for name, ask, told in (
        ("attention", lambda: backend_of(target), "The target runs {}, which can express a draft tree."),
        ("cache", lambda: _cache_kind(target), "The target's cache has layers of type {}, which can follow a tree."),
    ):
        try:
            yield Finding(name, Severity.ok, told.format(ask()))
        except ValueError as error:
            yield Finding(name, Severity.fault, *_seen_and_advice(error))


def _cache_kind(target: PreTrainedModel) -> str:
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    check_cache(cache, target.config)
    layers: list[Any] = cache.layers
    return " and ".join(sorted({type(layer).__name__ for layer in layers})) or "DynamicLayer"


# ---------------------------------------------------------------------- vocabularies and widths


def _vocabulary(case: Case) -> Iterator[Finding]:
    own, theirs = case.config.vocab_size, case.text.vocab_size
    if own != theirs:
        yield Finding(
            "vocabulary",
            Severity.fault,
            f"The head was made for a target of {own} tokens but the target has {theirs}.",
            "Use the target that this head was trained for.",
        )
    else:
        said = f"{case.config.draft_vocab_size} draft tokens of the target's {theirs}."
        yield Finding("vocabulary", Severity.ok, said)
    announced = case.subject.fields.get("vocab_size")
    if announced is not None and announced != own:
        yield Finding(
            "vocabulary",
            Severity.note,
            f"The head's config says {announced} target tokens, its tensors {own}; the tensors are believed.",
        )


def _draft_vocabulary(case: Case) -> Iterator[Finding]:
    """Every way in which `d2t` and `t2d` can be wrong (traps 5 to 7)."""
    d2t, t2d = case.tensors.get("d2t"), case.tensors.get("t2d")
    draft, vocabulary = int(case.config.draft_vocab_size or 0), case.config.vocab_size
    if draft == vocabulary or d2t is None or d2t.ndim != 1 or len(d2t) != draft:
        return  # a map that is missing or misshapen is a finding about tensors
    ids = d2t.long() + torch.arange(draft)
    outside = int(((ids < 0) | (ids >= vocabulary)).sum())
    disorder = int((ids.diff() <= 0).sum())
    wrong = [f"{outside} of {draft} lie outside of the {vocabulary} tokens"] if outside else []
    wrong += [f"{disorder} do not ascend"] if disorder else []
    if wrong:
        yield Finding(
            "d2t",
            Severity.fault,
            f"`d2t` does not hold offsets to target ids: read as such, {'; '.join(wrong)}.",
            "See whether the reading of `d2t` as ids below is better; if not, get the file again.",
        )
    elif could_be_ids(d2t, vocabulary):
        yield Finding(
            "d2t",
            Severity.warning,
            "The numbers in `d2t` ascend without a repetition, as ids do; offsets repeat where tokens are neighbours.",
            "The trials below tell which they are.",
        )
    elif bool((d2t == 0).all()):
        yield Finding(
            "d2t",
            Severity.warning,
            f"`d2t` is zero throughout: the head drafts only the first {draft} of {vocabulary} tokens.",
            "Ask its author whether the map was ever filled in.",
        )
    else:
        yield Finding("d2t", Severity.ok, "`d2t` holds offsets to ascending ids inside of the target's vocabulary.")
    if t2d is not None:
        yield from _mask_of(t2d, ids, vocabulary)


def _mask_of(t2d: torch.Tensor, ids: torch.Tensor, vocabulary: int) -> Iterator[Finding]:
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[ids[(ids >= 0) & (ids < vocabulary)]] = True
    if t2d.shape != mask.shape or not torch.equal(t2d.bool(), mask):
        marked = int(t2d.bool().sum())
        yield Finding(
            "t2d",
            Severity.fault,
            f"`t2d` marks {marked} of {len(t2d)} tokens, and not those that `d2t` names.",
            "One of the two is damaged or was never filled in; get the file again, or mend `d2t` if it holds ids.",
        )


def _widths(case: Case) -> Iterator[Finding]:
    config, hidden = case.config, case.text.hidden_size
    if config.target_hidden_size != hidden:
        yield Finding(
            "width",
            Severity.fault,
            f"The head reads target states of width {config.target_hidden_size} but the target's are {hidden} wide.",
            "Use the target that this head was trained for.",
        )
    else:
        yield Finding("width", Severity.ok, f"The head is {config.hidden_size} wide, the target's states {hidden}.")


def _embeddings(case: Case) -> Iterator[Finding]:
    own = case.tensors.get("embed_tokens.weight")
    weight = case.target.get_input_embeddings().weight
    if own is not None:
        same = own.shape == weight.shape and weight.device.type != "meta"
        equal = same and torch.allclose(own.float(), weight.float().cpu(), atol=1e-2)
        said = "equal to the target's" if equal else "which differ from the target's"
        yield Finding("embeddings", Severity.ok, f"The head brings its own embeddings, {said}.")
    elif weight.shape[-1] != case.config.hidden_size:
        yield Finding(
            "embeddings",
            Severity.fault,
            f"The head is {case.config.hidden_size} wide and brings no embeddings, and the target's are "
            f"{weight.shape[-1]} wide.",
            "Use the target that this head was trained for.",
        )
    else:
        yield Finding("embeddings", Severity.ok, "The head borrows the target's embeddings.")


# ---------------------------------------------------------------------- conventions


def _boundaries(case: Case) -> Iterator[Finding]:
    config, layers = case.config, case.text.num_hidden_layers
    try:
        boundaries = config.boundaries_for(layers)
    except ValueError as error:
        yield Finding("boundaries", Severity.fault, *_seen_and_advice(error))
        return
    if config.reads_last_hidden_state:
        yield Finding("boundaries", Severity.ok, "The head reads the target's last hidden state.")
        return
    how = "from its config" if config.target_boundaries is not None else "the default, its config names none"
    ids = (case.subject.fields.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    ids = ids or case.subject.fields.get("eagle_aux_hidden_state_layer_ids")
    if ids and sorted(ids) != boundaries:
        how = f"its config's layer ids {ids} taken for outputs"
    yield Finding("boundaries", Severity.ok, f"The head reads boundaries {boundaries} of {layers} layers ({how}).")


def _rope(case: Case) -> Iterator[Finding]:
    """A base that differs is no fault: heads have their own (trap 15), and many leave it out (traps 12 and 13)."""
    own: Any = case.config.rope_parameters
    theirs: Any = getattr(case.text, "rope_parameters", None) or {}
    theirs = next((part for part in theirs.values() if isinstance(part, dict)), theirs)
    told = _rope_words(own)
    base, kind = theirs.get("rope_theta"), theirs.get("rope_type", "default")
    if base is None or (base == own.get("rope_theta") and kind == own.get("rope_type")):
        yield Finding("rope", Severity.ok, f"The head has {told}" + (", as the target." if base else "."))
        return
    fields = {**case.subject.fields, **(case.subject.fields.get("transformer_layer_config") or {})}
    stated = any(fields.get(name) for name in ("rope_theta", "rope_parameters", "rope_scaling"))
    why = "" if stated else "; its config names none, which means 10000"
    yield Finding(
        "rope",
        Severity.note,
        f"The head has {told}, the target {_rope_words(theirs)}{why}.",
        "Heads may differ; the trials below tell whether another one drafts better.",
    )


def _rope_words(rope: Any) -> str:
    kind = rope.get("rope_type", "default")
    return f"rope base {rope.get('rope_theta', 0):g}" + ("" if kind == "default" else f" with {kind} scaling")


def _context(case: Case) -> Iterator[Finding]:
    own, theirs = case.config.max_position_embeddings, getattr(case.text, "max_position_embeddings", None)
    if theirs is not None and own < theirs:
        yield Finding(
            "context",
            Severity.warning,
            f"The head was made for {own} positions, the target for {theirs}.",
            f"Answers stay exact, but expect short acceptance beyond {own} tokens of context.",
        )
    else:
        yield Finding("context", Severity.ok, f"The head was made for {own} positions, the target for {theirs}.")
    if case.config.sliding_window is not None:
        yield Finding("context", Severity.note, f"The head looks back {case.config.sliding_window} positions only.")


# ---------------------------------------------------------------------- tensors


def _tensors(case: Case) -> Iterator[Finding]:
    """Missing, unknown and misshapen tensors, and those that hold no numbers: all of them."""
    expected = expected_shapes(case.config)
    found = {name for name in case.tensors if name in expected}
    optional = {"t2d"} if "d2t" in case.tensors else set()
    optional |= {"d2t", "t2d"} if case.config.draft_vocab_size == case.config.vocab_size else set()
    missing = sorted(expected.keys() - found - optional)
    unknown = sorted(case.tensors.keys() - expected.keys())
    again = "Get the file again, or ask its author."
    if missing:
        yield Finding("tensors", Severity.fault, f"Tensors are missing: {', '.join(missing)}.", again)
    if unknown:
        yield Finding("tensors", Severity.fault, f"Nothing reads the tensors {', '.join(unknown)}.", again)
    for name in sorted(found):
        tensor = case.tensors[name]
        if tuple(tensor.shape) != expected[name]:
            seen = f"`{name}` is {list(tensor.shape)} and {list(expected[name])} is needed."
            yield Finding("tensors", Severity.fault, seen, again)
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            seen = f"`{name}` holds {count} values that are NaN or infinite, of {tensor.numel()}."
            yield Finding("tensors", Severity.fault, seen, _overflow_advice(tensor.dtype))
    if not missing and not unknown:
        yield Finding("tensors", Severity.ok, f"{len(found)} tensors, all that a head of this config has.")


def _overflow_advice(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "Values beyond 65504 do not fit float16: get the head in bfloat16, the dtype it was trained in."
    return "Get the file again, or ask its author."


def _norms(case: Case) -> Iterator[Finding]:
    sane = []
    for name, tensor in sorted(case.tensors.items()):
        if "norm" not in name or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            continue
        mean = float(tensor.float().abs().mean())
        if not NORM_RANGE[0] <= mean <= NORM_RANGE[1]:
            yield Finding(
                "norms",
                Severity.warning,
                f"`{name}` has weights of mean size {mean:.2g}, where trained norms lie around 1.",
                "It may never have been loaded or trained; get the file again.",
            )
        else:
            sane.append(name)
    if sane:
        yield Finding("norms", Severity.ok, f"{len(sane)} norms with weights around 1.")


def _dtype(case: Case) -> Iterator[Finding]:
    stored, runs = case.subject.dtype, case.target.dtype
    if runs == torch.float16 and stored != torch.float16:
        floats = [tensor for tensor in case.tensors.values() if tensor.is_floating_point() and tensor.numel()]
        largest = max((float(tensor.abs().max()) for tensor in floats), default=0.0)
        if largest > torch.finfo(torch.float16).max:
            yield Finding(
                "dtype",
                Severity.fault,
                f"Weights up to {largest:.3g} do not fit float16, the target's dtype.",
                "Load both in bfloat16 or float32.",
            )
            return
    if stored != runs and {stored, runs} == {torch.float16, torch.bfloat16}:
        said = f"The head is stored in {_name(stored)} and runs in the target's {_name(runs)}, which rounds it."
        yield Finding("dtype", Severity.note, said)
    else:
        yield Finding("dtype", Severity.ok, f"The head is stored in {_name(stored)}, the target runs {_name(runs)}.")


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _seen_and_advice(error: Exception) -> tuple[str, str]:
    """Our refusals say what is wrong, and what to do after a semicolon."""
    seen, _, advice = str(error).partition("; ")
    return f"{seen.rstrip('.')}.", advice[:1].upper() + advice[1:]


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _vocabulary,
    _draft_vocabulary,
    _widths,
    _embeddings,
    _boundaries,
    _rope,
    _context,
    _tensors,
    _norms,
    _dtype,
)
