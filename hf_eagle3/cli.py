"""The command `hf-eagle3`: a list of commands, each of which lives in the module that does its work.

A command is imported when it is asked for, so that one whose extra is not installed does not stand in the others' way.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

Commands = dict[str, "str | Commands"]  # a command's function, or a group of commands
_COMMANDS: Commands = {
    "generate": "hf_eagle3.evaluation.command:generate",
    "data": {
        "write": "hf_eagle3.data.command:write",
        "inspect": "hf_eagle3.data.command:inspect",
        "diversity": "hf_eagle3.data.command:diversity",
    },
    "train": "hf_eagle3.training.command:train",
    "eval": "hf_eagle3.evaluation.command:evaluate",
    "figures": "hf_eagle3.evaluation.command:redraw",
    "sweep": "hf_eagle3.evaluation.sweep_command:sweep",
    "draw": "hf_eagle3.evaluation.command:draw",
    "doctor": "hf_eagle3.doctor.command:doctor",
    "card": "hf_eagle3.hub.command:card",
    "push": "hf_eagle3.hub.command:push",
    "export": "hf_eagle3.hub.command:export",
}
_GROUPS = {"data": "Conversations to train on: written by the target, looked at, measured."}


class _LazyGroup(TyperGroup):
    """Finds its commands by name in `commands_by_name`."""

    commands_by_name: ClassVar[Commands] = _COMMANDS

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands_by_name)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = self.commands_by_name.get(cmd_name)
        if found is None:
            return None
        if isinstance(found, dict):
            group = typer.main.get_command(_group(found, _GROUPS[cmd_name]))
            group.name = cmd_name
            return group
        module, function = found.split(":")
        command = typer.Typer(add_completion=False)
        command.command(cmd_name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(command)


def _group(commands: Commands, told: str) -> typer.Typer:
    """A group of commands that are imported when they are asked for."""
    lazy = type("_LazySubgroup", (_LazyGroup,), {"commands_by_name": commands})
    group = typer.Typer(cls=lazy, no_args_is_help=True, add_completion=False, help=told)
    group.callback()(lambda: None)
    return group


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _hf_eagle3() -> None:
    """EAGLE-3 speculative decoding, native to Hugging Face transformers."""


def main() -> None:
    """Runs the command line; what a user can mend is told in a sentence, with its trace if HF_EAGLE3_TRACE is set."""
    try:
        app(prog_name="hf-eagle3")
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_EAGLE3_TRACE"):
            raise
        told = " ".join(filter(None, map(str.strip, str(error).splitlines())))  # other libraries take several lines
        print(f"hf-eagle3: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
