"""Interviews held with a target: prompts in, conversations with the target's own answers out, many at once.

One state machine for user turns that are given and for those that the target makes up, for a target in this process
and for one behind a server. Knows nothing of files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .conversations import Conversation
from .filters import Gate, loops
from .interview import Interview, Plan, given_interview, request_seed, takes_system
from .router import Router, lanes_for
from .self_prompting import Question, SelfPrompter
from .slots import Completion, Request
from .template import TemplateError, prompt_ids, render

if TYPE_CHECKING:
    from .server import Server, ServerAnswer, ServerRequest
    from .sources import Prompt

Numbered = Iterable[tuple[int, "Prompt"]]
_GIVE_UP = 2000  # interviews begun one after the other of which nothing is kept
_SHORT_PROMPT = 160  # tokens; most prompts that are made up, and most that people write
_REFUSALS = 8  # so many before the first answer of a run, and the server refuses them all


class _Interviewer:
    """What all interviews have in common: who begins them, what may be asked and kept, and when it is enough.

    `begun` is the number of the next self-prompted interview; `answer_tokens` are those kept so far.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, plan: Plan, gate: Gate, prompts: Numbered | None, begun: int = 0
    ) -> None:
        self.tokenizer, self.plan, self.gate = tokenizer, plan, gate
        self.prompts = None if prompts is None else iter(prompts)
        self.sampler = SelfPrompter(tokenizer, plan) if prompts is None else None
        self.takes_system = takes_system(tokenizer)
        prompt_ids(tokenizer, [{"role": "user", "content": "Who is there?"}])  # a template that takes no chat is told
        self.begun, self.answer_tokens = begun, 0
        self._running, self._in_vain = 0, 0
        self._ended: deque[Interview] = deque()

    def _enough(self) -> bool:
        """Whether the answers to come may make up the budget, so that no more interviews are to begin for now."""
        if self.plan.answer_tokens is None:
            return False
        return self.answer_tokens + self._running * self.plan.max_answer >= self.plan.answer_tokens

    def _begin(self) -> bool:
        """Begin one interview; False if there are no more prompts."""
        if self._in_vain >= _GIVE_UP and self.sampler is not None:
            raise ValueError(
                f"None of {_GIVE_UP} self-prompted conversations in a row passed the filters: this target does not "
                "make up user turns of its own; give prompts instead (--prompts)."
            )
        if self.sampler is not None:
            self.begun, self._running = self.begun + 1, self._running + 1
            self._proceed(self.sampler.begin(self.begun - 1))
            return True
        number, prompt = next(self.prompts, (0, None)) if self.prompts is not None else (0, None)
        if prompt is None:
            return False
        self._running += 1
        interview = given_interview(self.plan, number, prompt.turns, prompt.system, prompt.source)
        if self._passes(interview, prompt.turns):
            self._proceed(interview)
        return True

    def remember(self, conversation: Conversation) -> None:
        """Count an example of an earlier run; what the target made up there is not asked again."""
        self.answer_tokens += conversation.answer_tokens
        if self.sampler is not None:
            for message in conversation.messages:
                if message["role"] == "user":
                    self.gate.remember([message["content"]])
                elif message["role"] == "assistant":
                    self.sampler.remember(str(conversation.about.get("source")), message["content"])

    def _passes(
        self, interview: Interview, turns: Iterable[str], written: str | None = None, may_repeat: bool = False
    ) -> bool:
        """Whether user turns may be asked; if not, the interview ends."""
        turns = list(turns)
        self.gate.tally = interview.tally
        if interview.system is not None and not self.takes_system:
            interview.tally.dropped("prompts", "system message, which the template does not take")
        elif self.gate.prompt(turns, written, may_repeat):
            return True
        interview.refused = not interview.answered
        self._end(interview)
        return False

    def _proceed(self, interview: Interview) -> None:
        """Ask the next user turn, or end the interview."""
        if interview.turns and interview.finished:
            self._ask(interview, interview.turns.popleft())
            return
        if interview.turns:
            interview.tally.dropped("later turns", "after an answer cut short", len(interview.turns))
        following = self.sampler.next(interview) if self.sampler is not None else None
        if isinstance(following, Request):
            self._sample(following)
        elif following is None:
            self._end(interview)
        elif self._passes(interview, [following.text], following.written, following.may_repeat):
            self._ask(interview, following.text)

    def _ask(self, interview: Interview, text: str) -> None:
        """Have the target answer, if there is room for it."""
        messages = interview.ask(text)
        try:
            prompt = prompt_ids(self.tokenizer, messages)
        except TemplateError:  # it takes chats, but not this one
            interview.tally.dropped("room for an answer", "refused by the chat template")
            self._end(interview)
            return
        if len(prompt) + self.plan.max_answer > self.plan.max_length:
            interview.tally.dropped("room for an answer", f"over {self.plan.max_length} tokens")
            self._end(interview)
            return
        interview.tally.kept("room for an answer")
        interview.prompt = prompt
        self._request_answer(interview, messages)

    def _may_keep(self, interview: Interview, text: str, ids: list[int]) -> bool:
        self.gate.tally = interview.tally
        if not text.strip():
            interview.tally.dropped("answers", "empty")
            return False
        return self.gate.answer(text, ids, interview.keep_loop)

    def _end(self, interview: Interview) -> None:
        self._running -= 1
        self._close(interview)
        for example in interview.examples:
            interview.tally.kept("examples")
            interview.tally.noted("examples", "finished" if example.about["finished"] else "cut short")
        self.answer_tokens += interview.answer_tokens
        self._in_vain = 0 if interview.examples else self._in_vain + 1
        self._ended.append(interview)

    def _close(self, interview: Interview) -> None:
        """Last touches to an interview that has ended."""

    def _sample(self, request: Request) -> None:
        raise NotImplementedError

    def _request_answer(self, interview: Interview, messages: list[dict[str, str]]) -> None:
        raise NotImplementedError


class Interviewer(_Interviewer):
    """Interviews with a `model` in this process, `slots` of them at once; iterate to get each one as it ends.

    Args:
        model: an attention-only decoder in eval mode; `tokenizer` its own, with a chat template.
        gate: what may be asked and kept; its tally is set to each interview's own.
        prompts: user turns with the number of their conversation; None has the target make them up.
        begun: where a resumed run of self-prompting goes on counting.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        gate: Gate,
        prompts: Numbered | None = None,
        slots: int = 48,
        begun: int = 0,
    ) -> None:
        super().__init__(tokenizer, plan, gate, prompts, begun)
        self.stop_ids = stop_ids(tokenizer, model.generation_config)
        lanes = lanes_for(slots, plan.max_answer + _SHORT_PROMPT, plan.max_length)
        self.decoder = Router(model, self.stop_ids, lanes, self._wasted)
        self._waiting: deque[Request] = deque()
        self._questions: set[int] = set()  # interviews whose user turn is being sampled

    def __iter__(self) -> Iterator[Interview]:
        for completion in self.decoder.run(self._requests()):
            interview: Interview = completion.request.payload
            if interview.number in self._questions:
                self._read_question(interview, completion)
            else:
                self._read_answer(interview, completion)
            while self._ended:
                yield self._ended.popleft()
        yield from self._ended

    def _requests(self) -> Iterator[Request | None]:
        while True:
            if self._waiting:
                yield self._waiting.popleft()
            elif not self._enough() and self._begin():
                continue
            elif self._running:
                yield None
            else:
                return

    def _sample(self, request: Request) -> None:
        self._questions.add(request.payload.number)
        self._waiting.append(request)

    def _request_answer(self, interview: Interview, messages: list[dict[str, str]]) -> None:
        plan, seed = self.plan, request_seed(self.plan.seed, interview, "answer")
        self._waiting.append(
            Request(interview.prompt, plan.max_answer, interview.temperature, plan.top_p, seed, interview)
        )

    def _read_question(self, interview: Interview, completion: Completion) -> None:
        self._questions.discard(interview.number)
        question: Question | None = self.sampler.read(interview, completion) if self.sampler is not None else None
        if question is None:
            self._end(interview)
        elif self._passes(interview, [question.text], question.written):
            self._ask(interview, question.text)

    def _read_answer(self, interview: Interview, completion: Completion) -> None:
        ids = completion.new_ids
        own = ids[:-1] if completion.finished else ids
        text = str(self.tokenizer.decode(own, clean_up_tokenization_spaces=False))
        if not self._may_keep(interview, text, ids):
            self._end(interview)
            return
        if self.sampler is not None:
            self.sampler.hear(interview, own, completion.finished)
        interview.answer(text, completion.finished)
        interview.join(completion.request.ids, ids)
        self._proceed(interview)

    def _wasted(self, request: Request, new_ids: list[int]) -> bool:
        """Whether a row can be ended early: its user turn is there, or it loops and no loop was wanted."""
        interview: Interview = request.payload
        if interview.number in self._questions and self.sampler is not None:
            return self.sampler.enough(request, new_ids)
        return not interview.keep_loop and loops(new_ids)


class ServerInterviewer(_Interviewer):
    """The same with a target behind an OpenAI-compatible `server`, for prompts that are given.

    Its answers are texts: ids and mask come from rendering the finished conversation with the target's template. A
    turn that the server refuses ends its conversation, and is counted.

    Raises:
        OSError: from iterating, if the server refuses all that it is asked first; none of it has been given out then.
    """

    def __init__(
        self,
        server: Server,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        plan: Plan,
        gate: Gate,
        prompts: Numbered,
    ) -> None:
        super().__init__(tokenizer, plan, gate, prompts)
        self.server, self.stop_ids = server, stop_ids
        self._waiting: deque[ServerRequest] = deque()
        self._refusals, self._first_refusal = 0, ""
        self._heard = self._heard_before = False  # whether the server answered anything: in this run, in earlier ones
        check = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "A friend."}]
        render(tokenizer, check, stop_ids)  # a template that cannot be masked is told before anything is asked

    def __iter__(self) -> Iterator[Interview]:
        while self._more():  # the last answers of a round may each have another turn to ask
            for answer in self.server.answers(self._requests()):
                self._read_answer(answer)
                # Until the server has answered anything, it may be the server and not the prompts: nothing is final.
                while self._heard and self._ended:
                    yield self._ended.popleft()
        if self._refusals and not (self._heard or self._heard_before):
            raise self._refuses_all()
        yield from self._ended

    def remember(self, conversation: Conversation) -> None:
        super().remember(conversation)
        self._heard_before = True

    def _more(self) -> bool:
        while not self._waiting:
            if self._enough() or not self._begin():
                return False
        return True

    def _requests(self) -> Iterator[ServerRequest]:
        while self._more():
            yield self._waiting.popleft()

    def _request_answer(self, interview: Interview, messages: list[dict[str, str]]) -> None:
        from .server import ServerRequest

        plan, seed = self.plan, request_seed(self.plan.seed, interview, "answer")
        self._waiting.append(
            ServerRequest(interview, messages, plan.max_answer, interview.temperature, plan.top_p, seed)
        )

    def _read_answer(self, answer: ServerAnswer) -> None:
        interview: Interview = answer.request.key
        if answer.refusal is not None:
            self._drop_refused(interview, answer.refusal)
            return
        self._heard = True
        ids: list[int] = self.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        if self._may_keep(interview, answer.text, ids):
            interview.answer(answer.text, answer.finished)
            self._proceed(interview)
        else:
            self._end(interview)

    def _drop_refused(self, interview: Interview, refusal: str) -> None:
        self._refusals += 1
        if self._refusals == 1:
            self._first_refusal = refusal
            interview.tally.noted("answers", f"the server refused first with {refusal}")
        if self._refusals == _REFUSALS and not self._heard:
            raise self._refuses_all()
        interview.tally.dropped("answers", "server refused it")
        self._end(interview)

    def _refuses_all(self) -> OSError:
        return OSError(
            f"{self.server.url} refused each of the first {self._refusals} requests ({self._first_refusal}): mend "
            "what it names, such as --max-answer or the prompts where its context is too short, and begin again."
        )

    def _close(self, interview: Interview) -> None:
        if not interview.answered:
            return
        try:
            rendered = render(self.tokenizer, interview.messages, self.stop_ids, interview.finished)
        except TemplateError as error:
            interview.tally.dropped("rendered", str(error).partition(":")[0])
            return
        interview.tally.kept("rendered")
        first = interview.answered - len(rendered) + 1  # one for each answer, or one for all of them
        for number, part in enumerate(rendered):
            interview.add(part.ids, part.mask, first + number)


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any) -> list[int]:
    """The tokens that end an answer: the generation config's, else the tokenizer's.

    Raises:
        ValueError: if neither names one.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        raise ValueError(
            "The target names no token that ends an answer: set eos_token_id in its generation_config.json."
        )
    return [int(token) for token in configured] if isinstance(configured, list) else [int(configured)]
