"""The loop: prefill, then draft, verify, accept, emit, keep, until something says stop.

One `TreeDecoding` is one call of `generate`; all its state lives in it. Knows drafters by their protocol only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .acceptance import greedy, sample, walk
from .attention import EAGLE3_TREE, backend_of, has_holes
from .cache import check_cache, keep_path, recording
from .drafters.base import TreeDrafter
from .limits import check_length, last_position
from .probe import follows_windows
from .states import capturing
from .tree import DraftTree
from .verification import Verified, verify

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer


@dataclass
class TreeDecoderOnlyOutput(GenerateDecoderOnlyOutput):
    """
    What `generate(..., return_dict_in_generate=True)` returns with a draft head: all of
    [`~transformers.generation.GenerateDecoderOnlyOutput`], and

    Args:
        acceptance_lengths (`list[list[int]]`):
            For each row, one number per verification forward: accepted drafts plus the bonus token, counted before
            anything is cut at a stop or a length limit. The prefill, which gives the first token, is not listed.
    """

    acceptance_lengths: list[list[int]] | None = None


class TreeDecoding:
    """
    One call of `generate` with a drafter.

    Args:
        target: the unmodified model.
        drafter: fresh for this call.
        input_ids: int64 `[1, length]`.
        logits_processor, stopping_criteria, generation_config, streamer: as `generate` prepared them.
        model_kwargs: as `generate` prepared them, `past_key_values` among them.
        on_round: sees every verified tree and its accepted nodes, root first; for pictures and demos.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        drafter: TreeDrafter,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None,
        model_kwargs: dict[str, Any],
        on_round: Callable[[DraftTree, list[int]], None] | None = None,
    ) -> None:
        self.target: Any = target
        self.drafter = drafter
        self.input_ids = input_ids
        self.processors, self.criteria = logits_processor, stopping_criteria
        self.config, self.streamer = generation_config, streamer
        self.model_kwargs = model_kwargs
        self.cache = model_kwargs["past_key_values"]
        self.on_round = on_round
        self.choose = sample if generation_config.do_sample else greedy
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self.acceptance_lengths: list[int] = []
        self.finished = False

    def run(self) -> TreeDecoderOnlyOutput | torch.Tensor:
        """Generate until a criterion stops it; what plain `generate` returns, plus the acceptance lengths."""
        self._check()
        self._prefill()
        with recording(self.cache):
            try:
                while not self.finished:
                    self._round()
            except BaseException:
                # The cache may be the caller's, who may go on with it: no rejected node stays behind in it.
                keep_path(self.cache, self.cached, [])
                raise
        if self.streamer is not None:
            self.streamer.end()
        return self._output()

    # ------------------------------------------------------------------ the steps

    def _check(self) -> None:
        check_cache(self.cache, self.target.config)
        mask, ids = self.model_kwargs.get("attention_mask"), self.input_ids.shape[1]
        # `generate` notes the length of a mask that it drops: it counts what is only cached, or came as embeddings.
        self.prompt_length = getattr(self.config, "_mask_length", ids) if mask is None else mask.shape[1]
        self.holes = mask is not None and mask.dim() == 2 and has_holes(mask)
        follows = follows_windows(self.target)
        slides = follows and not self.holes
        advice = "padding" if follows else "none" if backend_of(self.target) == EAGLE3_TREE else "implementation"
        longest = self.prompt_length + self.config.max_length - ids
        check_length(self.target.config, self.prompt_length, longest, slides, advice)
        self.last_position = last_position(self.target.config, self.prompt_length, slides)

    def _prefill(self) -> None:
        """Run the target over the prompt as plain `generate` does, capture the boundaries, choose the first token."""
        with capturing(self.target, self.drafter.boundaries) as capture:
            outputs = self.target._prefill(self.input_ids, self.config, self.model_kwargs | capture.asked)
        self._take_cache(outputs.get("past_key_values"))
        self.cached = self.cache.get_seq_length()
        self.offset = self.cached - self.input_ids.shape[1]
        padding = self.model_kwargs.get("attention_mask")
        self.committed = torch.ones(1, self.cached, dtype=torch.bool, device=self.input_ids.device)
        if padding is not None:
            self.committed[:, : padding.shape[1]] = padding[:, : self.cached].bool()
        positions = self.model_kwargs.get("position_ids")
        self.root_position = (
            torch.tensor([[self.cached]], device=self.input_ids.device)
            if positions is None
            else positions[..., -1:] + 1
        )
        states = capture.states(outputs.get("hidden_states"))
        if states:
            # Padding is on the left: the head never sees it.
            real = int(self.committed[0, self.cached - states[0].shape[1] :].sum())
            self.drafter.observe([state[:, -real:] for state in states], self.cached)
        self._walk(DraftTree.root_only(self.input_ids[:, -1:].new_zeros(1)), outputs.logits[:, -1:])

    def _take_cache(self, cache: Any) -> None:
        """The cache that the prefill filled: as a rule ours; some targets begin a new one (Phi-3, for a long text)."""
        if cache is self.cache or cache is None:  # some targets fill it and do not hand it back
            return
        check_cache(cache, self.target.config)
        if cache.get_seq_length() != self.prompt_length or self.cache.get_seq_length() > 0:
            raise ValueError(
                f"{type(self.target).__name__} decodes on a cache of its own making, which drafting cannot follow; "
                "call `generate` without a head."
            )
        self.cache = self.model_kwargs["past_key_values"] = cache

    def _round(self) -> None:
        tree = self.drafter.draft(self.input_ids, self.offset, self._levels_left())
        tree = _on(tree, self.input_ids.device)
        verified = self._verify(tree)
        path, emitted = self._walk(tree, verified.logits)
        self.acceptance_lengths.append(len(path))
        if self.on_round is not None:
            self.on_round(tree, path)
        self._keep(verified, path[:emitted])

    def _verify(self, tree: DraftTree) -> Verified:
        return verify(
            self.target,
            tree,
            self.cache,
            self.committed,
            self.root_position,
            self.drafter.boundaries,
            holes=self.holes,
            **self.model_kwargs,
        )

    def _keep(self, verified: Verified, path: list[int]) -> None:
        """Keep the emitted part of the path in the target's cache, and show the drafter its states."""
        keep_path(self.cache, self.cached, path)
        self.cached += len(path)
        self.root_position = self.root_position + len(path)
        self.committed = torch.nn.functional.pad(self.committed, (0, len(path)), value=True)
        self.drafter.observe([state[:, path] for state in verified.states], self.cached)

    # ------------------------------------------------------------------ choosing and emitting tokens

    def _walk(self, tree: DraftTree, logits: torch.Tensor) -> tuple[list[int], int]:
        """Choose tokens along the tree from `logits` `[1, nodes, vocab]`, emit them until a criterion stops, and go on
        counting what the target would have accepted.

        Returns:
            the nodes whose tokens stand, root first, and how many tokens were emitted (one follows each node).
        """
        history, emitted = self.input_ids, 0
        path: list[int] = []
        plain_greedy = not len(self.processors) and self.choose is greedy
        # In float32 like plain `generate`; a CPU is also slower at it in half precision.
        best = logits[0].float().argmax(-1).tolist() if plain_greedy and not self._records else None

        def choose(node: int, drafted: list[int]) -> int:
            path.append(node)
            if best is not None:
                return best[node]
            raw = logits[:, node].to(dtype=torch.float32, device=history.device, copy=True)
            scores = self._processors_now()(history, raw)
            if self._records and not self.finished:
                self._record(raw, scores)
            return self.choose(scores[0], drafted)

        for step in walk(tree.children(0), tree.tokens[0].tolist(), choose):
            # int64 like the tokens of plain `generate`, whatever integers the prompt came in.
            history = torch.cat((history, torch.tensor([[step.token]], device=history.device)), dim=1)
            if not self.finished:
                emitted += 1
                self._emit(history, step.token)
        return path, emitted

    def _emit(self, history: torch.Tensor, token: int) -> None:
        """One more token, exactly as plain `generate` would: streamed, then shown to every stopping criterion."""
        self.input_ids = history
        scores = tuple(self.scores) if self.config.output_scores and self.config.return_dict_in_generate else None
        self.finished = bool(self.criteria(history, scores).all())
        if self.streamer is not None:
            self.streamer.put(torch.tensor([token]))

    def _processors_now(self) -> LogitsProcessorList:
        """Past a stop, where tokens are only counted, the caller's own processors are left alone: plain `generate`
        would never have shown them such a history. Those of transformers end with the call and go on."""
        if not self.finished:
            return self.processors
        return LogitsProcessorList(
            processor
            for processor in self.processors
            if type(processor).__module__.startswith("transformers.")
            and not isinstance(processor, PrefixConstrainedLogitsProcessor)
        )

    @property
    def _records(self) -> bool:
        return bool(self.config.return_dict_in_generate and (self.config.output_scores or self.config.output_logits))

    def _record(self, raw: torch.Tensor, scores: torch.Tensor) -> None:
        if self.config.output_scores:
            self.scores.append(scores)
        if self.config.output_logits:
            self.logits.append(raw)

    # ------------------------------------------------------------------ limits and output

    def _levels_left(self) -> int | None:
        """Levels below the root that still have a position on the target. Windows count cached rows, padding too."""
        if self.last_position is None:
            return None
        return max(0, self.last_position - max(self.cached, int(self.root_position.max())))

    def _output(self) -> TreeDecoderOnlyOutput | torch.Tensor:
        if not self.config.return_dict_in_generate:
            return self.input_ids
        return TreeDecoderOnlyOutput(
            sequences=self.input_ids,
            scores=tuple(self.scores) if self.config.output_scores else None,
            logits=tuple(self.logits) if self.config.output_logits else None,
            past_key_values=self.cache,
            acceptance_lengths=[self.acceptance_lengths],
        )


def _on(tree: DraftTree, device: torch.device) -> DraftTree:
    if tree.tokens.device == device:
        return tree
    return DraftTree(tree.tokens.to(device), tree.parents.to(device), tree.log_probs.to(device))
