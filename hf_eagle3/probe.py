"""The probe: does this target, as it is configured, hold a draft tree?

There is no list of models: the target is asked, by a small tree and by the same tokens step by step.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicCache

from .attention import EAGLE3_TREE, backend_of, listening
from .cache import check_cache, keep_path, recording
from .states import input_device
from .tree import DraftTree
from .tree_kernel import tree_kernel
from .verification import verify

# Largest difference between tree and plain logits that is still rounding: root mean square over the vocabulary, as a
# share of the spread of the plain logits, so that an offset common to all of them hides nothing. Seen on a target of
# 30 layers: 6e-6 in float32 and 0.07 in bfloat16, where one that ignores its mask comes to 0.34 and 0.37. So a probe
# in bfloat16 sees only that much; what a family does in one layer is what the test over all families sees, in float32.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        problem: what is wrong with trees on a target, or `None`.
        follows_windows: whether every layer that has a window tells it to `eagle3_tree`.
    """

    problem: str | None
    follows_windows: bool = False


_VERDICTS: dict[str, Verdict] = {}
_WELCOME: weakref.WeakKeyDictionary[PreTrainedModel, dict[str, Verdict]] = weakref.WeakKeyDictionary()


def check_target(target: PreTrainedModel, boundaries: Sequence[int]) -> None:
    """Refuse a target on which a draft tree does not give plain decoding's logits.

    The first time that a configuration is met (with its attention implementation, dtype and boundaries) the target
    runs a small tree, two siblings and a child, and the same tokens step by step. The random state is left as it was.

    Raises:
        ValueError: if the target cannot run a tree, or the logits differ beyond `PROBE_TOLERANCE`.
    """
    backend = backend_of(target)
    by = f"{backend} by {tree_kernel().name} on {target.device.type}" if backend == EAGLE3_TREE else backend
    quick = f"{by} {target.dtype} {list(boundaries)} training={target.training}"
    if quick in _WELCOME.setdefault(target, {}):
        return
    key = hashlib.sha256(f"{type(target)} {quick} {target.config.to_json_string()}".encode()).hexdigest()
    if key not in _VERDICTS:
        devices = [target.device] if target.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            try:
                _VERDICTS[key] = _compare(target, boundaries)
            except (torch.OutOfMemoryError, MemoryError):
                raise  # no verdict on the target
            except Exception as error:  # anything that any model's code may raise; not remembered: it may pass
                reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
                raise ValueError(_refusal(target, f"{type(error).__name__}: {reason}")) from error
    verdict = _VERDICTS[key]
    if verdict.problem is not None:
        raise ValueError(_refusal(target, verdict.problem))
    _WELCOME[target][quick] = verdict


def follows_windows(target: PreTrainedModel) -> bool:
    """Whether trees slide with a target's windows: it has been let in with `eagle3_tree`, and its layers tell them."""
    backend = backend_of(target)
    met = _WELCOME.get(target, {}).items()
    return backend == EAGLE3_TREE and any(
        verdict.follows_windows for quick, verdict in met if quick.startswith(backend)
    )


def _refusal(target: PreTrainedModel, problem: str) -> str:
    advice = "it is in training mode, so call `target.eval()` first" if target.training else ""
    if not advice and backend_of(target) == EAGLE3_TREE:
        advice = 'load it with `attn_implementation="sdpa"` or `"eager"`, or call `generate` without a draft head'
    advice = advice or "call `generate` without a draft head"
    return f"{type(target).__name__} cannot verify a draft tree ({problem}); {advice}."


def _compare(target: PreTrainedModel, boundaries: Sequence[int]) -> Verdict:
    with listening(target) as heard:
        from_tree = _tree_logits(target, boundaries)
    verdict = _judge_windows(target, heard) if backend_of(target) == EAGLE3_TREE else Verdict(None)
    if verdict.problem is not None:
        return verdict
    difference, tolerance = logits_difference(from_tree, _plain_logits(target)), tolerance_of(target)
    if difference <= tolerance:
        return verdict
    return Verdict(
        f"on a small tree its logits differ from plain decoding by {difference:.1e} of their spread, "
        f"{tolerance:.0e} allowed"
    )


def _judge_windows(target: PreTrainedModel, heard: dict[int, int | None]) -> Verdict:
    """What the windows that layers told `eagle3_tree` say of a target: eight tokens are too few to see them slide.

    Args:
        heard: layer index -> window, as from [`listening`].
    """
    if not heard:
        return Verdict(f"its layers do not call {EAGLE3_TREE}, as they do not use transformers' attention interface")
    layers = DynamicCache(config=target.config.get_text_config(decoder=True)).layers
    shared = {index for index, layer in enumerate(layers) if isinstance(layer, DummyLayer)}  # see another's keys
    cached = {index: getattr(layer, "sliding_window", None) for index, layer in enumerate(layers)}
    for index, window in heard.items():
        if window is not None and index not in shared and cached.get(index) != window:
            return Verdict(f"a layer asks for a window of {window}, which its cache does not have")
    return Verdict(None, all(window is None or heard.get(index) == window for index, window in cached.items()))


def logits_difference(logits: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference between two `[rows, vocab]`, in the measure of `PROBE_TOLERANCE`."""
    spread = plain.std(-1).clamp(min=1e-6)
    return float(((logits - plain).square().mean(-1).sqrt() / spread).max())


def tolerance_of(target: PreTrainedModel) -> float:
    """Of `PROBE_TOLERANCE`, what holds for the target's dtype."""
    return PROBE_TOLERANCE.get(target.dtype, PROBE_TOLERANCE[torch.bfloat16])


@torch.no_grad()
def last_logits(target: PreTrainedModel) -> torch.Tensor:
    """The logits of the last two of a few tokens, in one ordinary forward that computes no others where it can."""
    ids = torch.tensor([_probe_ids(target)[:5]], device=input_device(target))
    fewer = {"logits_to_keep": 2} if target._supports_logits_to_keep() else {}
    return target(ids, use_cache=False, **fewer).logits[0, -2:].float()


def _probe_ids(target: PreTrainedModel) -> list[int]:
    """Eight tokens, different ones where the vocabulary has as many: a prompt of three, the root, two siblings, a
    child of the first, and a last one."""
    vocabulary = target.config.get_text_config(decoder=True).vocab_size
    stride = next(step for step in range(max(1, vocabulary // 8), 0, -1) if math.gcd(step, vocabulary) == 1)
    return [(index + 1) * stride % vocabulary for index in range(8)]


def _tree_logits(target: PreTrainedModel, boundaries: Sequence[int]) -> torch.Tensor:
    """Logits after the second sibling, after the child, and after one more token once the child's path is kept."""
    ids = torch.tensor([_probe_ids(target)], device=input_device(target))
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    check_cache(cache, target.config)
    with recording(cache):
        target(ids[:, :3], past_key_values=cache, use_cache=True)
        if cache.get_seq_length() != 3:
            raise ValueError("it leaves the cache that it is given empty")
        parents = torch.tensor([[-1, 0, 0, 1]], device=ids.device)
        tree = DraftTree(ids[:, 3:7], parents, torch.zeros(parents.shape))
        committed = torch.ones(1, 6, dtype=torch.bool, device=ids.device)
        position = torch.tensor([[3]], device=ids.device)
        verified = verify(target, tree, cache, committed[:, :3], position, boundaries, use_cache=True)
        keep_path(cache, 3, [0, 1, 3])
        last = DraftTree.root_only(ids[:, 7])
        after = verify(target, last, cache, committed, position + 3, boundaries, use_cache=True)
    return torch.cat((verified.logits[0, 2:], after.logits[0]), dim=0).float()


def _plain_logits(target: PreTrainedModel) -> torch.Tensor:
    """The same logits, token by token as plain `generate` computes them."""
    ids = _probe_ids(target)
    sibling, child = [*ids[:4], ids[5]], [*ids[:5], *ids[6:8]]
    path = _step_by_step(target, child)
    return torch.stack((_step_by_step(target, sibling)[-1], path[-2], path[-1])).float()


def _step_by_step(target: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    tokens = torch.tensor([ids], device=input_device(target))
    cache = DynamicCache(config=target.config.get_text_config(decoder=True))
    chunks = [tokens[:, :3], *tokens[:, 3:].split(1, dim=1)]
    logits = []
    for start, chunk in zip([0, *range(3, len(ids))], chunks, strict=True):
        positions = torch.arange(start, start + chunk.shape[1], device=tokens.device)[None]
        out = target(chunk, position_ids=positions, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1])
    return logits
