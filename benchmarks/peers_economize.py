"""economize, with our head in it: how it is called, and at which setting it is fastest.

It is no dependency of ours and is imported only when asked for. It reads our head as `export_head(..., "eagle")`
writes it, drafts one chain after the other, and keeps a log of every forward, from which its acceptance length comes.
Its `decode` is called, which does less around the loop than its `generate`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peers_figures import acceptance_length

from hf_eagle3.evaluation.questions import Question, encode_chat
from hf_eagle3.evaluation.timing import Run, Settings, run_plain
from hf_eagle3.hub.export import export_head

WARM_UP_TOKENS = 8
PRECISIONS = ("float32", "model")  # of the head inside economize: its own default, or the target's dtype


@dataclasses.dataclass(frozen=True)
class Setting:
    """How economize drafts.

    Args:
        depth: the longest chain, in drafted tokens; its `cycle_length` counts the target's own token as well.
        confidence: drafting stops below this probability; 0 drafts the whole chain each time.
        precision: what the head computes in, one of `PRECISIONS`.
    """

    depth: int
    confidence: float
    precision: str


@dataclasses.dataclass(frozen=True)
class Tried:
    """What one setting reached on the prompts.

    Args:
        acceptance_length: tokens per target forward, bonus included.
        mean: of the prompts' ratios to plain `generate`, tokens per second; what ranks the settings.
        ratio: their median.
    """

    setting: Setting
    acceptance_length: float
    mean: float
    ratio: float


class Economize:
    """economize's `eagle3` technique around a target, with our head in it."""

    def __init__(self, model: Any, head: Any) -> None:
        self._package: Any = find_economize()
        self._model = model
        with tempfile.TemporaryDirectory() as folder:
            exported = export_head(head, Path(folder) / "head", "eagle", target=model)
            self._checkpoint = self._package.read_checkpoint(exported)
        self._wrapped: dict[str, Any] = {}

    def run(self, inputs: Mapping[str, Any], settings: Settings, setting: Setting) -> Run:
        """One greedy answer; forwards are those that its own log names exact, the prompt's among them."""
        wrapped = self._with_precision(setting.precision)
        decoding = self._package.DecodeConfig(
            cycle_length=setting.depth + 1,
            min_confidence=setting.confidence or None,
            cuda_graphs=self._model.device.type == "cuda",
        )
        stop = self._model.generation_config.eos_token_id
        self._wait()
        start = time.perf_counter()
        result = wrapped.decode(inputs["input_ids"], settings.max_new_tokens, decoding=decoding, stop=stop)
        self._wait()
        seconds = time.perf_counter() - start
        return Run(result.tokens.tolist(), seconds, result.cost.count("exact"))

    def _with_precision(self, precision: str) -> Any:
        if precision not in self._wrapped:
            configs = [dataclasses.replace(config, param_dtype=precision) for config in self._checkpoint.configs]
            checkpoint = dataclasses.replace(self._checkpoint, configs=configs)
            self._wrapped[precision] = self._package.attach(self._model, checkpoint).eval()
        return self._wrapped[precision]

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)


def find_economize() -> Any:
    """The package.

    Raises:
        ValueError: it is not there.
    """
    if importlib.util.find_spec("economize") is None:
        raise ValueError(
            "economize is not installed beside hf_eagle3: run `pip install --no-deps --target DIR economize==0.3.2` "
            "and start again with PYTHONPATH=DIR, or give --without economize."
        )
    return importlib.import_module("economize")


def try_settings(
    peer: Economize, model: Any, tokenizer: Any, prompts: Sequence[Question], given: Sequence[Setting], length: int
) -> list[Tried]:
    """Every setting on every prompt, `length` new tokens each, in turns with plain `generate`; the fastest first."""
    settings, short = Settings(length), Settings(min(length, WARM_UP_TOKENS))
    runs: dict[Setting, list[tuple[Run, Run]]] = {setting: [] for setting in given}
    for turn, prompt in enumerate(prompts):
        inputs = encode_chat(tokenizer, prompt.text, model.device)
        if turn == 0:
            run_plain(model, inputs, short)
            for setting in given:
                peer.run(inputs, short, setting)
        plain = run_plain(model, inputs, settings)
        for setting in rotated(given, turn):
            runs[setting].append((plain, peer.run(inputs, settings, setting)))
    return sorted((_tried(setting, pairs) for setting, pairs in runs.items()), key=lambda entry: -entry.mean)


def _tried(setting: Setting, pairs: Sequence[tuple[Run, Run]]) -> Tried:
    ratios = [run.tokens_per_second / plain.tokens_per_second for plain, run in pairs]
    length = acceptance_length([run for _, run in pairs])
    return Tried(setting, length, statistics.mean(ratios), statistics.median(ratios))


def rotated(names: Sequence[Any], turn: int) -> list[Any]:
    """`names` in their order, another one first from turn to turn: slow drifts of the machine are spread evenly."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def settings_to_try(depths: Sequence[int], confidences: Sequence[float], dtype: torch.dtype) -> list[Setting]:
    """All combinations, each once; a float32 target leaves one precision."""
    precisions = PRECISIONS[:1] if dtype == torch.float32 else PRECISIONS
    grid = itertools.product(depths, confidences, precisions)
    return [Setting(*choice) for choice in dict.fromkeys(grid)]
