"""One target forward over a draft tree, and the probe that a target holds a tree at all.

The target is called through its public forward, unmodified. Knows nothing of drafting or acceptance.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from .attention import backend_of, tree_mask
from .cache import check_cache, keep_path
from .tree import DraftTree

# Largest difference between tree and plain logits, as a share of the largest plain logit, that is still rounding.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Inputs with one entry per token: generated text keeps the kind of the prompt's last token, as in plain `generate`.
TOKEN_TYPES = {"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"}


@dataclass(frozen=True)
class Verified:
    """
    Args:
        logits (`[batch, nodes, vocab]`): The target's scores after each node, in its own dtype.
        states: one `[batch, nodes, target_hidden]` per captured boundary.
    """

    logits: torch.Tensor
    states: list[torch.Tensor]


def captured(hidden_states: Sequence[torch.Tensor | None] | None, boundaries: Sequence[int]) -> list[torch.Tensor]:
    """The states at the asked boundaries, out of a model output's `hidden_states`.

    Raises:
        ValueError: if the target does not give them.
    """
    if not boundaries:
        return []
    given = hidden_states or ()
    states = [given[boundary] if boundary < len(given) else None for boundary in boundaries]
    if any(state is None for state in states):
        raise ValueError(
            f"The target does not return its hidden states at boundaries {list(boundaries)}, which the head reads; "
            "use a decoder-only model whose forward supports `output_hidden_states`."
        )
    return states  # type: ignore[return-value]


def verify(
    target: Any,
    tree: DraftTree,
    cache: Cache,
    committed: torch.Tensor,
    root_position: torch.Tensor,
    boundaries: Sequence[int],
    **model_kwargs: Any,
) -> Verified:
    """Run the target once over all nodes of a tree.

    Args:
        tree: `[batch, nodes]`, tokens on the target's input device.
        cache: grows by one row per node.
        committed: bool `[batch, cached]`, the cached positions that are not padding.
        root_position: int64 `[..., 1]`, position ids of the root (some targets have several kinds of positions).
        boundaries: which states to capture.
        model_kwargs: whatever else the target's forward gets in plain `generate`.
    """
    for name in ("attention_mask", "position_ids", "logits_to_keep", "output_hidden_states", "past_key_values"):
        model_kwargs.pop(name, None)
    for name in TOKEN_TYPES & model_kwargs.keys():
        model_kwargs[name] = model_kwargs[name][..., -1:].expand_as(tree.tokens)
    inputs = target.prepare_inputs_for_generation(
        tree.tokens, next_sequence_length=tree.num_nodes, past_key_values=cache, **model_kwargs
    )
    inputs["attention_mask"] = tree_mask(tree, committed, backend_of(target), target.dtype)
    inputs["position_ids"] = root_position + tree.depths.to(root_position.device)
    if boundaries:
        inputs["output_hidden_states"] = list(boundaries)
    outputs = target(**inputs, return_dict=True)
    return Verified(outputs.logits, captured(outputs.get("hidden_states"), boundaries))


# ---------------------------------------------------------------------- the probe

_PROBED: dict[str, str | None] = {}
_SEEN: weakref.WeakKeyDictionary[PreTrainedModel, set[str]] = weakref.WeakKeyDictionary()


def check_target(target: PreTrainedModel, boundaries: Sequence[int]) -> None:
    """Refuse a target on which a draft tree does not give plain decoding's logits.

    The first time that a configuration is met (with its attention implementation, dtype and boundaries) the target
    runs a small tree, two siblings and a child, and the same tokens step by step. The random state is left as it was.

    Raises:
        ValueError: if the target cannot run a tree, or the logits differ beyond `PROBE_TOLERANCE`.
    """
    quick = f"{backend_of(target)} {target.dtype} {list(boundaries)} training={target.training}"
    if quick in _SEEN.setdefault(target, set()):
        return
    key = hashlib.sha256(f"{type(target)} {quick} {target.config.to_json_string()}".encode()).hexdigest()
    if key not in _PROBED:
        devices = [target.device] if target.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            _PROBED[key] = _probe(target, boundaries)
    problem = _PROBED[key]
    if problem is not None:
        raise ValueError(
            f"{type(target).__name__} cannot verify a draft tree ({problem}); call `generate` without a draft head."
        )
    _SEEN[target].add(quick)


def _probe(target: PreTrainedModel, boundaries: Sequence[int]) -> str | None:
    """What is wrong with tree verification on this target, or `None`."""
    try:
        from_tree, plain = _tree_logits(target, boundaries), _plain_logits(target)
    except (torch.OutOfMemoryError, MemoryError):
        raise  # no verdict on the target
    except Exception as error:  # anything that any model's code may raise; it is reported, and the target refused
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
        return f"its forward over one raises {type(error).__name__}: {reason}"
    scale = plain.abs().max().clamp(min=1e-6)
    difference = float((from_tree - plain).abs().max() / scale)
    tolerance = PROBE_TOLERANCE.get(target.dtype, PROBE_TOLERANCE[torch.bfloat16])
    if not difference <= tolerance:
        return (
            f"on a small tree its logits differ from plain decoding by {difference:.1e} of their size, "
            f"{tolerance:.0e} allowed"
        )
    return None


def _probe_ids(target: PreTrainedModel) -> list[int]:
    """Seven different tokens: a prompt of three, the root, two siblings, a child of the first, and a last one."""
    vocabulary = target.config.get_text_config(decoder=True).vocab_size
    return [(7 + 13 * index) % vocabulary for index in range(8)]


def _tree_logits(target: PreTrainedModel, boundaries: Sequence[int]) -> torch.Tensor:
    """Logits after the second sibling, after the child, and after one more token once the child's path is kept."""
    ids = torch.tensor([_probe_ids(target)], device=target.device)
    cache = _fresh_cache(target)
    target(ids[:, :3], past_key_values=cache, use_cache=True)
    parents = torch.tensor([[-1, 0, 0, 1]], device=ids.device)
    tree = DraftTree(ids[:, 3:7], parents, torch.zeros(parents.shape))
    committed = torch.ones(1, 3, dtype=torch.bool, device=ids.device)
    verified = verify(target, tree, cache, committed, _position(ids, 3), boundaries, use_cache=True)
    keep_path(cache, 3, [0, 1, 3])
    last = DraftTree.root_only(ids[:, 7])
    committed = torch.ones(1, 6, dtype=torch.bool, device=ids.device)
    after = verify(target, last, cache, committed, _position(ids, 6), boundaries, use_cache=True)
    return torch.cat((verified.logits[0, 2:], after.logits[0]), dim=0).float()


def _plain_logits(target: PreTrainedModel) -> torch.Tensor:
    """The same logits, token by token as plain `generate` computes them."""
    ids = _probe_ids(target)
    sibling, child = [*ids[:4], ids[5]], [*ids[:5], *ids[6:8]]
    path = _step_by_step(target, child)
    return torch.stack((_step_by_step(target, sibling)[-1], path[-2], path[-1])).float()


def _step_by_step(target: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    tokens = torch.tensor([ids], device=target.device)
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    chunks = [tokens[:, :3], *tokens[:, 3:].split(1, dim=1)]
    logits = []
    for start, chunk in zip([0, *range(3, len(ids))], chunks, strict=True):
        positions = torch.arange(start, start + chunk.shape[1], device=tokens.device)[None]
        out = target(chunk, position_ids=positions, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1])
    return logits


def _fresh_cache(target: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    cache.activate_past_recording()
    check_cache(cache, target.config)
    return cache


def _position(ids: torch.Tensor, position: int) -> torch.Tensor:
    return torch.full((1, 1), position, device=ids.device)


__all__ = ["PROBE_TOLERANCE", "Verified", "captured", "check_target", "verify"]
