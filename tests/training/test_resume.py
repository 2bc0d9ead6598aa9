"""Cut into sittings or killed at any moment, a run goes on to the very losses of the one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_training import arguments, losses, own_rows, tiny_head, tiny_target
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_eagle3.training import checkpoints
from hf_eagle3.training.trainer import Eagle3Trainer

TESTS = Path(__file__).resolve().parents[1]
STEPS = 12


def run(folder: Path, callback: TrainerCallback | None = None, **overrides: Any) -> Eagle3Trainer:
    """One sitting in this process."""
    target = tiny_target()
    rows = own_rows(target)
    args = arguments(folder, **{"max_steps": STEPS, **overrides})
    callbacks = [callback] if callback else []
    trainer = Eagle3Trainer(tiny_head(target), target, args, rows[4:], rows[:4], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(checkpoints.newest(folder) or "") or None)
    return trainer


class StopAt(TrainerCallback):
    """Ends a sitting after a step, with a checkpoint, as the time limit does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("fields", [{}, {"packing": True}, {"bf16": True}, {"logging_steps": 4}], ids=str)
@pytest.mark.parametrize("sittings", [[5], [3, 4, 9]])
def test_sittings_are_one_run(tmp_path: Path, sittings: list[int], fields: dict[str, Any]) -> None:
    """Weights, and the losses of the log: of windows of several steps, cut anywhere, too."""
    whole = run(tmp_path / "whole", **fields)
    for stop in sittings:
        part = run(tmp_path / "parts", StopAt(stop), **fields)
        assert part.state.global_step == stop
    last = run(tmp_path / "parts", **fields)
    assert losses(last) == losses(whole)
    assert len(losses(last)) == STEPS // fields.get("logging_steps", 1)
    for one, other in zip(last.objective.parameters(), whole.objective.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_sitting_ends_in_time_with_a_checkpoint(tmp_path: Path) -> None:
    part = run(tmp_path, max_minutes=1e-6)
    assert part.state.global_step == 1
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-1"
    assert run(tmp_path).state.global_step == STEPS


def test_a_sitting_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """With one checkpoint to be kept, and that the best one, the newest stays until the run is over."""
    run(tmp_path, StopAt(6), save_total_limit=1)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-6"
    whole = run(tmp_path, save_total_limit=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{whole.state.best_global_step}"]


def test_the_clock_starts_when_the_caller_says(tmp_path: Path) -> None:
    target = tiny_target()
    rows = own_rows(target)
    args = arguments(tmp_path, max_minutes=60)
    trainer = Eagle3Trainer(tiny_head(target), target, args, rows[4:], rows[:4], began=time.monotonic() - 3601)
    trainer.train()
    assert trainer.state.global_step == 1


def test_true_goes_on_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, StopAt(5))
    (tmp_path / "checkpoint-6").mkdir()
    target = tiny_target()
    rows = own_rows(target)
    trainer = Eagle3Trainer(tiny_head(target), target, arguments(tmp_path, max_steps=STEPS), rows[4:], rows[:4])
    trainer.train(resume_from_checkpoint=True)
    assert len(losses(trainer)) == STEPS
    empty = Eagle3Trainer(tiny_head(target), target, arguments(tmp_path / "empty"), rows[4:], rows[:4])
    with pytest.raises(OSError, match="no whole checkpoint"):
        empty.train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_found_where_the_run_was_moved(tmp_path: Path) -> None:
    part = run(tmp_path / "here", StopAt(5), save_total_limit=1)
    assert part.state.best_global_step == 4
    (tmp_path / "here").rename(tmp_path / "there")
    moved = run(tmp_path / "there", StopAt(7), save_total_limit=1)
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-4")
    assert (tmp_path / "there" / "checkpoint-4").is_dir()


def test_a_run_at_its_end_takes_no_further_step(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path)
    assert again.state.global_step == STEPS
    for one, other in zip(again.objective.parameters(), whole.objective.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(tmp_path: Path) -> None:
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text('{"global_step": 4}')
    with checkpoints.intact(tmp_path, 4):
        assert not checkpoints.is_whole(state.parent)


def spawn(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    fields = [f"max_steps={STEPS}", "save_steps=1", "eval_steps=1", "save_total_limit=2", "eval_prompts=1"]
    command = [sys.executable, "-m", "helpers.tiny_training", str(folder), *fields]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=TESTS, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def newest_step(folder: Path) -> int:
    return max((checkpoints.step_of(path) for path in folder.glob("checkpoint-*")), default=0)


@pytest.mark.parametrize("moment", [pytest.param("anywhere", marks=pytest.mark.slow), "in a save"])
def test_killed_and_resumed(tmp_path: Path, moment: str) -> None:
    """SIGKILL while it steps, measures or is half-way through a checkpoint; then left to end."""
    rng, folder = random.Random(moment), tmp_path / "killed"
    pause = "0.3" if moment == "in a save" else "0.05"
    for reached in (3,) if moment == "in a save" else (2, 5, 8):
        process = spawn(folder, PAUSE_IN_SAVE=pause)
        while process.poll() is None and newest_step(folder) < reached:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2 if moment == "anywhere" else 0)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        if moment == "in a save":
            assert not checkpoints.is_whole(folder / f"checkpoint-{newest_step(folder)}")
    process = spawn(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-2000:]
    whole = run(tmp_path / "whole")
    assert len(losses(whole)) == STEPS
    assert json.loads((folder / "losses.json").read_text()) == losses(whole)
    resumed = load_file(folder / f"checkpoint-{STEPS}" / "model.safetensors")
    left_alone = load_file(tmp_path / "whole" / f"checkpoint-{STEPS}" / "model.safetensors")
    assert all(torch.equal(resumed[name], left_alone[name]) for name in left_alone)


@pytest.mark.parametrize("state", [None, "", "{", '{"global_step": 3}'])
def test_what_was_not_written_to_its_end_is_no_checkpoint(tmp_path: Path, state: str | None) -> None:
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    broken = tmp_path / "checkpoint-12"
    broken.mkdir()
    if state is not None:
        (broken / "trainer_state.json").write_text(state)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-8"
    assert not broken.exists()
    assert checkpoints.newest(tmp_path / "nowhere") is None
