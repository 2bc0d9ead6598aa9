"""`hf-eagle3 sweep`: from options to the cost curve, the timed trees and the record of both.

Typer reads the signature, and the first paragraphs are the help. The heavy imports stand inside the functions, so that
`hf-eagle3 --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import Device, Dtype, Head, Seed, Target, Temperatures, load_pair

if TYPE_CHECKING:
    from rich.console import Console

    from .cost_curve import CostCurve
    from .questions import Question
    from .sweep import Candidate, Entry, Shape
    from .timing import Settings


def sweep(
    questions: Annotated[Path, typer.Option(help="A folder of .jsonl files, one object with `turns` a line.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Nodes,depth,top-k and perhaps the threshold below which levels end, such as 16,5,6 or 12,6,6,0.4; "
            "once for each tree. [chains, small and large trees, and such as end early]"
        ),
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option(min=1, help="Time only so many trees: those that the cost curve and a rehearsal put first."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    context: Annotated[int, typer.Option(help="Cached positions under the forwards of the cost curve.")] = 256,
    repeats: Annotated[int, typer.Option(min=0, help="Times behind each of its points; 0 leaves it out.")] = 15,
    json: Annotated[Path | None, typer.Option(help="Write the figures and their provenance here.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw cost curve and trees into this SVG file.")] = None,
    target: Target = None,
    head: Head = None,
    temperature: Temperatures = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Finds the fastest tree on this device: each shape answers each question, in turns with plain generate.

    Before that it measures what a verification costs by its nodes, and the head's work by its levels, in plain steps;
    the ratio that follows from these and the acceptance length stands beside the measured one. The default tree of a
    device is what this chooses on prompts of our own, at temperatures 0 and 1: of the trees within a hundredth of the
    best mean ratio, the geometric one, that of fewest nodes.
    """
    from rich.console import Console

    from . import report
    from .cost_curve import check_context
    from .questions import read_questions
    from .sweep import COMMON_SHAPES
    from .timing import WHOLE_DISTRIBUTION, Settings

    shapes = list(dict.fromkeys(map(_shape, shape))) if shape else list(COMMON_SHAPES)
    if finalists is not None and not repeats:
        raise ValueError(
            "--finalists was given with --repeats 0, but trees are ranked by the cost curve: leave out one of the two."
        )
    asked = [question for of_file in read_questions(questions).values() for question in of_file]
    if not asked:
        raise ValueError(f"{questions} holds no question: give files with one object with `turns` a line.")
    temperatures = list(dict.fromkeys(temperature or [0.0]))
    settings = [Settings(max_new_tokens, each, seed, sampling=WHOLE_DISTRIBUTION) for each in temperatures]
    for path in filter(None, (json, figure)):
        report.check_writable(path)
    if figure is not None:
        from .canvas import check_drawing

        check_drawing()
    pair = load_pair(target, head, dtype, device, drafting=True)
    if repeats:
        check_context(pair[0], context)
    sweeping = _Sweeping(pair, asked, settings, Console())
    curve = sweeping.costs(context, repeats) if repeats else None
    candidates = sweeping.candidates(shapes, curve) if finalists is not None and curve is not None else []
    timed = [candidate.shape for candidate in candidates[:finalists]] if finalists is not None else shapes
    sweeping.finish(sweeping.trees(timed, curve), curve, candidates, json, figure)


class _Sweeping:
    """One sweep: its steps, each shown as it ends."""

    def __init__(
        self, pair: tuple[Any, Any, Any], asked: list[Question], settings: Sequence[Settings], console: Console
    ) -> None:
        self.model, self.tokenizer, self.head = pair
        self.asked, self.settings, self.console = asked, settings, console

    def costs(self, context: int, repeats: int) -> CostCurve:
        from . import report
        from .cost_curve import measure_costs
        from .questions import encode_chat

        ids = encode_chat(self.tokenizer, " ".join(question.text for question in self.asked), self.model.device)
        with self._progress("cost curve", repeats + 1) as done:
            curve = measure_costs(self.model, self.head, ids["input_ids"], context, repeats, done=done)
        self.console.print(report.cost_table(curve))
        return curve

    def candidates(self, shapes: Sequence[Shape], curve: CostCurve) -> list[Candidate]:
        from . import report
        from .sweep import rank

        with self._progress("rehearsal", len(self.asked) * len(self.settings)) as done:
            ranked = rank(self.model, self.tokenizer, self.head, self.asked, shapes, self.settings, curve, done)
        self.console.print(report.candidates_table(ranked))
        return ranked

    def trees(self, shapes: Sequence[Shape], curve: CostCurve | None) -> list[Entry]:
        from . import report
        from .sweep import sweep as time_shapes

        with self._progress("questions", len(self.asked) * len(self.settings)) as done:
            entries = time_shapes(
                self.model, self.tokenizer, self.head, self.asked, shapes, self.settings, done, curve
            )
        self.console.print(report.sweep_table(entries))
        return entries

    def finish(
        self,
        entries: Sequence[Entry],
        curve: CostCurve | None,
        candidates: Sequence[Candidate],
        json: Path | None,
        figure: Path | None,
    ) -> None:
        """Say which tree is chosen, and write and draw the record."""
        from ..default_trees import DEFAULT_TREES, device_kind
        from . import report
        from .records import shape_in_words
        from .sweep import chosen

        best, kind = chosen(entries), device_kind(self.model.device, self.model.dtype)
        now = DEFAULT_TREES[kind]
        self.console.print(
            f"chosen (within a hundredth of the best mean ratio, the fewest nodes): {shape_in_words(best.shape)}; "
            f"the default for {kind!r} is {shape_in_words(tuple(vars(now).values()))}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        record = {
            "provenance": report.provenance(self._asked_for()),
            "cost": None if curve is None else dataclasses.asdict(curve),
            "trees": [dataclasses.asdict(entry) for entry in entries],
            "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
            "chosen": list(best.shape),
        }
        if json is not None:
            report.write_json(json, record)
        if figure is not None:
            from .tree_figure import draw_trees

            draw_trees([record], figure)
            self.console.print(str(figure), highlight=False)

    def _asked_for(self) -> dict[str, Any]:
        """Every setting that the figures depend on."""
        from .. import embedded
        from ..native_products import multiplies_natively

        return {
            **dataclasses.asdict(self.settings[0]),
            "temperature": [each.temperature for each in self.settings],
            "target": embedded.public_name(self.model.name_or_path),
            "head": embedded.public_name(self.head.name_or_path),
            "prompts": len(self.asked),
            "dtype": str(self.model.dtype),
            "device": str(self.model.device),
            "native_products": multiplies_natively(self.model.dtype, self.model.device),
        }

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        from rich.progress import Progress

        with Progress(console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)


def _shape(text: str) -> Shape:
    from ..tree import TreeShape

    sizes = text.split(",")
    try:
        nodes, depth, top_k = (int(part) for part in sizes[:3])
        (threshold,) = [float(part) for part in sizes[3:]] or [0.0]
    except ValueError as error:
        raise ValueError(
            f"--shape {text} was given; three whole numbers are needed, and perhaps a threshold, as in --shape 16,5,6 "
            "or --shape 12,6,6,0.4."
        ) from error
    TreeShape(nodes, depth, top_k, threshold)  # refuses what is no tree
    return (nodes, depth, top_k, threshold) if threshold else (nodes, depth, top_k)
