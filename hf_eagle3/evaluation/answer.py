"""One question answered on the screen: streamed, counted, and on request set beside plain `generate`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from .lossless import Judge, Verdict
from .questions import encode_chat
from .timing import Run, Settings, run_drafted, run_plain, warm_up


class ConsoleStreamer(TextStreamer):
    """Writes an answer to a rich console as its words become whole; without a console it decodes and keeps silent.

    The silent form exists for fair timing: a run that nobody watches does the same work as one that is shown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self._console is not None:
            end = "\n" if stream_end else ""
            self._console.print(text, end=end, markup=False, highlight=False, emoji=False, soft_wrap=True)


@dataclass(frozen=True)
class Answer:
    """What one question took: the run that was shown, and its plain twin and the verdict when they were asked for."""

    run: Run
    plain: Run | None = None
    verdict: Verdict | None = None

    @property
    def ratio(self) -> float | None:
        """Tokens per second over those of plain `generate`."""
        return None if self.plain is None else self.run.tokens_per_second / self.plain.tokens_per_second


class Speaker:
    """Answers questions with one target, and with a head unless that is None.

    Args:
        model: the target.
        tokenizer: its tokenizer.
        head: drafts for the target; None answers by plain `generate`.
        settings: length, temperature, seed, tree.
        console: where the answers go.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        head: PreTrainedModel | None,
        settings: Settings,
        console: Console,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._head = head
        self._settings = settings
        self._console = console
        self._judge = None if head is None else Judge(model, head)
        self._warm = False

    def answer(self, question: str, compare: bool = False) -> Answer:
        """Streams the answer, then prints what it took; with `compare`, also what plain `generate` takes for it."""
        inputs = encode_chat(self._tokenizer, question, self._model.device)
        if not self._warm:
            warm_up(self._model, self._head, inputs, self._settings)
            self._warm = True
        self._console.rule(style="dim")
        self._console.print(question, style="bold", markup=False, highlight=False, emoji=False)
        shown = ConsoleStreamer(self._tokenizer, self._console)
        if self._head is None or self._judge is None:
            answer = Answer(run_plain(self._model, inputs, self._settings, shown))
        else:
            run = run_drafted(self._model, self._head, inputs, self._settings, shown)
            answer = Answer(run)
            if compare:
                silent = ConsoleStreamer(self._tokenizer, None)
                plain = run_plain(self._model, inputs, self._settings, silent)
                verdict = None
                if self._settings.greedy:
                    verdict = self._judge.rule(inputs, self._settings, plain.tokens, run.tokens)
                answer = Answer(run, plain, verdict)
        self._print_cost(answer)
        return answer

    def _print_cost(self, answer: Answer) -> None:
        self._print_line(cost_line(answer.run))
        if answer.plain is not None:
            agreement = "sampled, so the tokens differ" if answer.verdict is None else str(answer.verdict)
            self._print_line(f"plain generate: {cost_line(answer.plain)} · ratio {answer.ratio:.2f} · {agreement}")

    def _print_line(self, line: str) -> None:
        self._console.print(line, style="cyan", markup=False, highlight=False, soft_wrap=True)


def cost_line(run: Run) -> str:
    """Tokens, acceptance length, target forwards and tokens per second of a run, in one line."""
    parts = [f"{len(run.tokens)} tokens"]
    if run.acceptance_lengths:
        parts.append(f"acceptance length {run.acceptance_length:.2f} (tokens per verification, bonus included)")
    return " · ".join([*parts, f"{run.forwards} target forwards", f"{run.tokens_per_second:.1f} tokens/s"])
