"""One examination, from a head's name and a target to a diagnosis: what the files show, then what trials show."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint import check_draft_vocabulary
from ..configuration_eagle3 import LAST_HIDDEN_STATE, Eagle3Config
from ..evaluation.acceptance_length import acceptance_on
from ..evaluation.questions import encode_chat
from ..evaluation.timing import Settings
from ..head_files import Tensors
from ..pairing import check_pair
from ..states import last_layer
from .alternatives import Change, Reading, alternatives, changed
from .chain import worst_fit
from .chat_checks import chat_findings
from .findings import Diagnosis, Finding, Recommendation, Severity
from .search import CHAIN_DEPTH, Measured, Search
from .static_checks import Case, run_checks, target_findings
from .subject import Subject, assemble, complete, moved, open_subject
from .teacher import Passage, Teacher

# Faults after which no reading of the head can be scored on this target.
HINDERS_TRIALS = ("layout", "weights", "config", "vocabulary", "width", "embeddings", "tensors")
# Faults after which `generate` would refuse the target itself.
HINDERS_PROBE = ("attention", "cache", "boundaries")
# A chain that gives fewer tokens than this for each verification drafts nothing to speak of, whatever is changed.
HARDLY_ANY = 1.1
# A recommended reading predicts at least so many nats better than a blind guess: noise does not.
BEYOND_GUESSING = 1.0
# Of fewer answers, nothing can be said of other texts.
FEWEST_ANSWERS = 4


def examine(
    head: str | os.PathLike, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> Diagnosis:
    """Find out what is wrong between a head and a target.

    Args:
        head: folder or Hub id of the head, of any layout that is known here.
        target: the model that it is to draft for, loaded.
        tokenizer: the target's.
        options: see [`Examination`].

    Raises:
        OSError: if there is no such head; whatever else is wrong with it is a finding.
    """
    return Examination(head, target, tokenizer, **options).run()


class Examination:
    """
    Args:
        head, target, tokenizer: as [`examine`] takes them.
        teacher: gives the answers that all trials rest on; to be shared by examinations of several heads.
        real_prompts: how many of its prompts `generate` answers with the head itself.
        revision: of a head on the Hub.
        progress: called with a line about what is being done.
    """

    def __init__(
        self,
        head: str | os.PathLike,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher: Teacher | None = None,
        real_prompts: int = 2,
        revision: str | None = None,
        progress: Callable[[str], Any] = lambda line: None,
    ) -> None:
        self.subject: Subject = open_subject(head, {"revision": revision} if revision else {})
        self.reading: Reading = {}
        self._target = target
        self._tokenizer = tokenizer
        self._teacher = teacher or Teacher(target, tokenizer)
        self._real_prompts = real_prompts
        self._progress = progress
        self._diagnosis = Diagnosis(str(head), str(target.name_or_path))

    @torch.no_grad()
    def run(self) -> Diagnosis:
        """Everything: checks of the files, then trials as far as the faults allow."""
        subject, diagnosis = self.subject, self._diagnosis
        self._progress("checking files and configs")
        diagnosis.findings += subject.findings
        if subject.config is not None:
            diagnosis.findings += run_checks(Case(subject, subject.config, subject.tensors, self._target))
        diagnosis.findings += target_findings(self._target)
        diagnosis.findings += chat_findings(self._target, self._tokenizer, subject.config)
        if subject.other is not None:
            self._examine_other(subject.other)
        elif subject.config is not None and not self._found(HINDERS_TRIALS):
            self._examine_eagle3(subject.config)
        return diagnosis

    # ------------------------------------------------------------------ the parts of it

    def _examine_other(self, head: PreTrainedModel) -> None:
        """A head without EAGLE-3's conventions: whether it fits, and what it is worth."""
        self._add(
            "conventions",
            Severity.note,
            f"Other readings of a head of this kind ({type(head).__name__}) are not tried, nor its norms looked at.",
            "Judge it by its acceptance length.",
        )
        if self._fits(head):
            self._progress("generating with the head")
            self._judge(self._real("as it is", head))

    def _examine_eagle3(self, config: Eagle3Config) -> None:
        tensors = moved(complete(self.subject.tensors, config), self._target.dtype, self._target.device)
        head = self._sound(config, tensors)
        fits = head is not None and self._fits(head)
        choices = [change for change in alternatives(config, tensors, self._target.config) if self._captures(change)]
        self._progress("the target answers")
        read = self._passages(config, choices)
        if not read:
            return
        self._progress(f"trying {len(choices)} other readings")
        present, best = self._search(config, tensors, read, choices)
        self._coverage(config, tensors, read)
        if fits and head is not None and self._real_prompts:
            self._progress("generating with the head")
            self._real("as it is", head)
        if present.acceptance_length < HARDLY_ANY and not any(
            trial.gain for trials in self._diagnosis.rounds for trial in trials
        ):
            self._add(
                "acceptance",
                Severity.warning,
                "No draft was accepted under any reading, and none differs from another: the trials tell nothing.",
                "See whether the target answers English prompts at all; a head of another language or for code may be "
                "sound.",
            )
        else:
            self._judge(present.acceptance_length)
        self._recommend(config, present, best)
        if self._diagnosis.recommendation is not None:
            self._confirm(config, tensors)

    def _captures(self, change: Change) -> bool:
        """Whether the target gives the states that a reading wants; where its last layer cannot be found, none of them
        behind it."""
        layers = self._target.config.get_text_config(decoder=True).num_hidden_layers
        if layers not in (change.fields.get("target_boundaries") or ()):
            return True
        try:
            last_layer(self._target)
        except ValueError:
            return False
        return True

    def _sound(self, config: Eagle3Config, tensors: Tensors) -> PreTrainedModel | None:
        """The head under a reading, if nothing hinders `generate`."""
        try:
            head = assemble(config, tensors)
            check_draft_vocabulary(head.to_target_ids(torch.arange(len(head.d2t), device=head.device)), config)
        except (ValueError, RuntimeError):
            return None  # the checks have said why
        return head

    def _fits(self, head: PreTrainedModel) -> bool:
        """Whether `generate` would take the pair; asks the probe, unless the answer is known already."""
        if self._found(HINDERS_PROBE):
            return False
        try:
            check_pair(self._target, head)
        except ValueError as error:
            seen, _, advice = str(error).partition("; ")
            self._add("pair", Severity.fault, f"{seen.rstrip('.')}.", advice[:1].upper() + advice[1:])
            return False
        self._add("pair", Severity.ok, "Head and target fit, and the target verified a small draft tree exactly.")
        return True

    def _passages(self, config: Eagle3Config, choices: Sequence[Change]) -> list[Passage]:
        """The target's answers, with the states that any reading wants."""
        layers = self._target.config.get_text_config(decoder=True).num_hidden_layers
        wanted = set(config.target_boundaries or ())
        if not self._found(("boundaries",)):
            wanted |= set(config.boundaries_for(layers))
        for change in choices:
            wanted |= set(change.fields.get("target_boundaries") or ())
        try:
            read = self._teacher.passages(boundary for boundary in wanted if LAST_HIDDEN_STATE <= boundary <= layers)
        except ValueError as error:
            self._add("trials", Severity.fault, str(error))
            return []
        number = sum(len(passage.spans) for passage in read)
        if number < FEWEST_ANSWERS:
            seen = f"Only {number} of {len(self._teacher.prompts)} answers are long enough to try the head on."
            self._add("trials", Severity.warning, seen, "See whether the target answers these prompts at all.")
            return []
        return read

    def _search(
        self, config: Eagle3Config, tensors: Tensors, read: list[Passage], choices: Sequence[Change]
    ) -> tuple[Measured, Measured]:
        """Look for a better reading; in float32 where the head's own dtype gives no numbers."""
        search = Search(config, tensors, self._target, read, choices)
        if not search.measure({}).finite:
            wide = moved(tensors, torch.float32, self._target.device)
            search = Search(config, wide, self._target, read, choices)
            dtype = str(self._target.dtype).removeprefix("torch.")
            found = search.measure({})
            worth = f"in float32 it has an acceptance length of {found.acceptance_length:.2f}"
            self._add(
                "scores",
                Severity.fault,
                f"In {dtype} the head gives scores that are NaN or infinite"
                + (f"; {worth}." if found.finite else ", and in float32 too."),
                "Run the pair in bfloat16 or float32; the trials below were made in float32.",
            )
        self.reading, present, best = search.run()
        self._diagnosis.rounds = search.rounds
        self._diagnosis.answers = sum(len(passage.spans) for passage in read)
        self._diagnosis.positions = best.positions
        self._diagnosis.longest = max(len(passage.ids) for passage in read)
        return present, best

    def _coverage(self, config: Eagle3Config, tensors: Tensors, read: list[Passage]) -> None:
        """How much of the target's answers the draft vocabulary can say."""
        _, tensors = changed(self.reading, config, tensors)
        sayable = tensors["t2d"].to(self._target.device)
        spans = [passage.ids[start:end] for passage in read for start, end in passage.spans]
        answers = sayable[torch.cat(spans)]
        share = float(answers.float().mean())
        few = share < 0.8
        self._add(
            "coverage",
            Severity.warning if few else Severity.ok,
            f"The draft vocabulary holds {share:.1%} of the {len(answers)} tokens of the target's answers.",
            "What it lacks is never drafted: see whether the head is for this target and language." if few else "",
        )

    # ------------------------------------------------------------------ what it comes to

    def _recommend(self, config: Eagle3Config, present: Measured, best: Measured) -> None:
        blind = worst_fit(config.vocab_size)
        if not self.reading or float(best.fits.mean()) - blind < BEYOND_GUESSING:
            self.reading = {}
            return
        fields = {name: value for change in self.reading.values() for name, value in change.fields.items()}
        _, tensors = changed(self.reading, config, self.subject.tensors)
        before = self.subject.tensors
        rewritten = [name for name in {**before, **tensors} if tensors.get(name) is not before.get(name)]
        self._diagnosis.recommendation = Recommendation(
            {change.kind: change.told for change in self.reading.values()},
            fields,
            sorted(rewritten),
            best.acceptance_length,
            present.acceptance_length,
        )

    def _confirm(self, config: Eagle3Config, tensors: Tensors) -> None:
        """The recommended reading in a real `generate`."""
        head = self._sound(*changed(self.reading, config, tensors))
        try:
            if head is not None and self._real_prompts and not self._found(("attention", "cache")):
                check_pair(self._target, head)
                self._real("as recommended", head)
        except ValueError as error:
            self._add("pair", Severity.fault, str(error))

    def _judge(self, acceptance_length: float) -> None:
        """Say what the head as it is is worth."""
        what = "`generate`" if self.subject.other is not None else f"A chain of {CHAIN_DEPTH} drafts"
        said = f"{what} gives {acceptance_length:.2f} tokens per verification, bonus included."
        if acceptance_length < HARDLY_ANY:
            advice = "Follow the recommendation if there is one; else see whether it was trained for this very target."
            self._add("acceptance", Severity.fault, said, advice)
        else:
            self._add("acceptance", Severity.ok, said)

    def _real(self, name: str, head: PreTrainedModel) -> float:
        texts = self._teacher.prompts[: self._real_prompts]
        asked = [encode_chat(self._tokenizer, text, self._target.device) for text in texts]
        figures = acceptance_on(self._target, head, asked, Settings(max_new_tokens=self._teacher.new_tokens))
        self._diagnosis.real[name] = figures.acceptance_length
        return figures.acceptance_length

    def _found(self, checks: Sequence[str]) -> bool:
        return any(finding.check in checks for finding in self._diagnosis.faults)

    def _add(self, check: str, severity: Severity, seen: str, advice: str = "") -> None:
        self._diagnosis.findings.append(Finding(check, severity, seen, advice))
