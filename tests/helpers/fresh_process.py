"""Processes in which transformers is imported and hf_eagle3 is not: forks of one that has done just that, and waits.

Importing torch and transformers is nearly all that such a process would do by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_OPENING = """
import sys, threading, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

def refused(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("not refused")
"""


class FreshProcesses:
    """Runs scripts, each in a process of its own: `with FreshProcesses(environment) as fresh: fresh.run(url, ...)`."""

    def __init__(self, environment: dict[str, str]) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.environment = {**environment, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> FreshProcesses:
        command = [sys.executable, "-m", "helpers.fresh_process"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.parent = subprocess.Popen(command, env=self.environment, cwd=ROOT, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait()

    def run(self, url: str, home: Path, script: str, **values: Any) -> dict[str, Any]:
        """What `script` puts into `found`. It has `values` as names, the Hub at `url`, a cache below `home`, and no
        account there."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        order = {"url": url, "home": str(home), "script": _OPENING + textwrap.dedent(script), "values": values}
        print(json.dumps(order), file=self.parent.stdin, flush=True)
        found = json.loads(self.parent.stdout.readline())
        assert "failed" not in found, found["failed"]
        return found


def _serve() -> None:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as answer:
                json.dump(_carried_out(json.loads(line)), answer)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            print(answer.read() or '{"failed": "the process died"}', flush=True)
        os.waitpid(child, 0)


def _carried_out(order: dict[str, Any]) -> dict[str, Any]:
    import pytest

    from .hub_client import pointed_at

    sys.stdout = sys.stderr  # the answer is all that is read
    with pytest.MonkeyPatch.context() as patch:
        pointed_at(order["url"], patch, order["home"])
        names: dict[str, Any] = {**order["values"], "found": {}}
        try:
            exec(compile(order["script"], "script", "exec"), names)
        except BaseException:
            return {"failed": traceback.format_exc()}
        return names["found"]


if __name__ == "__main__":
    _serve()
