"""Several processes are one: the loss curve of two under DDP, and of a sharded objective, is that of a single one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as spawning
from helpers.tiny_training import losses, own_rows, tiny_head, tiny_target, untouched
from torch import distributed
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_eagle3.data.features import TargetStates
from hf_eagle3.training.batches import Collator
from hf_eagle3.training.objective import TrainingTimeTest
from hf_eagle3.training.trainer import Eagle3Trainer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_group(rank: int, work: Any, port: int, folder: str, *args: Any) -> None:
    """Runs `work` as one of two gloo processes; the first writes what it returns."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        ACCELERATE_USE_CPU="true", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    result = work(folder, *args)
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result))
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    # What is to be shown is done. Gloo's threads, torn down with the interpreter, abort a process now and then.
    os._exit(0)


def two_processes(work: Any, folder: Path, *args: Any) -> Any:
    spawning.spawn(in_group, (work, free_port(), str(folder), *args), nprocs=2)
    return json.loads((folder / "result.json").read_text())


def train(folder: str, accumulation: int, share: float) -> dict[str, Any]:
    """Losses of a run, and what the model was wrapped in."""
    target = tiny_target()
    args = untouched(
        folder, max_steps=10, gradient_accumulation_steps=accumulation, anchor_share=share, learning_rate=5e-3
    )
    rows = own_rows(target, 28)
    trainer = Eagle3Trainer(tiny_head(target), target, args, rows, rows[:4])
    assert len(trainer.batches.plan) % 2 == 0  # else two processes would take one batch of each epoch twice
    trainer.train()
    metrics = trainer.evaluate()
    return {"losses": losses(trainer), "wrapped": type(trainer.model_wrapped).__name__, "metrics": metrics}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_two_processes_have_the_curve_of_one(tmp_path: Path, share: float) -> None:
    """Two processes a batch each, one process two batches an update: the same divisor, the same anchors."""
    alone, together = train(str(tmp_path), 2, share), two_processes(train, tmp_path, 1, share)
    print(f"alone    {alone['losses']}\ntogether {together['losses']}")
    assert together["wrapped"] == DistributedDataParallel.__name__
    assert alone["wrapped"] == TrainingTimeTest.__name__
    assert together["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    for name in ("eval_loss", "eval_chain_acceptance", "eval_acceptance_length"):
        assert together["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-4), name


def step_sharded(folder: str, sharded: bool) -> list[float]:
    """Losses of five updates on one batch, with the parameters whole or sharded over the group."""
    if sharded:
        distributed.init_process_group("gloo")
    target = tiny_target()
    head, rows = tiny_head(target), own_rows(target)[:4]
    states = TargetStates(target, head.config.boundaries_for(8))
    batch = Collator(packed=False)([(e, 7) for e in states.examples([(r["input_ids"], r["loss_mask"]) for r in rows])])
    objective = TrainingTimeTest(head, target.get_input_embeddings(), states.logit_rule)
    if sharded:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
        fully_shard(objective, mesh=mesh)
        assert isinstance(objective, FSDPModule)
        shard = next(objective.parameters())
        assert shard.to_local().numel() < shard.numel()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    history = []
    for _ in range(5):
        loss = objective(3, **batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_a_sharded_objective_learns_alike(tmp_path: Path) -> None:
    alone, together = step_sharded(str(tmp_path), False), two_processes(step_sharded, tmp_path, True)
    print(f"whole   {alone}\nsharded {together}")
    assert alone[-1] < alone[0]
    assert together == pytest.approx(alone, abs=1e-4)
