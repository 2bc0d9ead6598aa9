"""Faults seeded into a head's files, and what the doctor says of each: `python tests/helpers/seeded_faults.py`.

The embedded head is damaged, because trials tell faults of a trained head apart and none of a random one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Damage = Callable[[dict[str, Any], Tensors], None]


@dataclass(frozen=True)
class SeededFault:
    """
    Args:
        name: what was done.
        damage: does it, to config fields and tensors in place.
        kinds: the changes that the doctor must recommend, all of them and no other.
        faults: the checks that must find a fault.
        dtype: what the pair runs in.
    """

    name: str
    damage: Damage
    kinds: Sequence[str] = ()
    faults: Sequence[str] = ()
    dtype: str = "bfloat16"


def seed(fault: SeededFault, healthy: Path, folder: Path) -> Path:
    """Write the damaged head to a new folder."""
    shutil.copytree(healthy, folder, ignore=shutil.ignore_patterns("training*", "README.md"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    fault.damage(config, tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if fault is TRUNCATED:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


# ---------------------------------------------------------------------- the damages


def nothing(config: dict[str, Any], tensors: Tensors) -> None:
    pass


def setting(**fields: Any) -> Damage:
    def damage(config: dict[str, Any], tensors: Tensors) -> None:
        config.update(fields)

    return damage


def shifting(step: int) -> Damage:
    def damage(config: dict[str, Any], tensors: Tensors) -> None:
        config["target_boundaries"] = [boundary + step for boundary in config["target_boundaries"]]

    return damage


def both(*damages: Damage) -> Damage:
    def damage(config: dict[str, Any], tensors: Tensors) -> None:
        for each in damages:
            each(config, tensors)

    return damage


def swap_norms(config: dict[str, Any], tensors: Tensors) -> None:
    embedding, hidden = "layers.0.input_layernorm.weight", "layers.0.hidden_norm.weight"
    tensors[embedding], tensors[hidden] = tensors[hidden], tensors[embedding]


def store_ids(config: dict[str, Any], tensors: Tensors) -> None:
    tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))


def store_ids_in_bounds(config: dict[str, Any], tensors: Tensors) -> None:
    """Ids where offsets belong, all of which are tokens of the target when they are read as offsets; and no mask, as
    ModelOpt writes none, so that nothing but trials can tell."""
    store_ids(config, tensors)
    ids, places = tensors["d2t"], torch.arange(len(tensors["d2t"]))
    kept = ids + places < config["vocab_size"]
    tensors["d2t"], tensors["lm_head.weight"] = ids[kept], tensors["lm_head.weight"][kept]
    config["draft_vocab_size"] = int(kept.sum())
    del tensors["t2d"]


def reverse_states(config: dict[str, Any], tensors: Tensors) -> None:
    tensors["fc.weight"] = torch.cat(tensors["fc.weight"].chunk(3, dim=1)[::-1], dim=1)


def swap_inputs(config: dict[str, Any], tensors: Tensors) -> None:
    for name in "qkv":
        key = f"layers.0.self_attn.{name}_proj.weight"
        tensors[key] = torch.cat(tensors[key].chunk(2, dim=1)[::-1], dim=1)


def scaled(factor: float, dtype: torch.dtype) -> Damage:
    """The same head at another scale of its residual stream, which its norms take out again, in another dtype."""

    def damage(config: dict[str, Any], tensors: Tensors) -> None:
        for name in ("fc.weight", "layers.0.self_attn.o_proj.weight", "layers.0.mlp.down_proj.weight"):
            tensors[name] = tensors[name] * factor
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(dtype)
        config["dtype"] = str(dtype).removeprefix("torch.")

    return damage


def widen(config: dict[str, Any], tensors: Tensors) -> None:
    """A head for a target of another width, with embeddings of its own."""
    config["target_hidden_size"] = 640
    tensors["fc.weight"] = torch.zeros(576, 3 * 640, dtype=torch.bfloat16)


def enlarge_vocabulary(config: dict[str, Any], tensors: Tensors) -> None:
    config["vocab_size"] = 50_000
    tensors["t2d"] = torch.nn.functional.pad(tensors["t2d"], (0, 50_000 - len(tensors["t2d"])))


def rope(**fields: Any) -> Damage:
    return setting(rope_parameters={"rope_type": "default", "rope_theta": 100_000.0, **fields})


HEALTHY = SeededFault("none: the head as it is", nothing)
TRUNCATED = SeededFault("weights file cut in the middle", nothing, faults=["weights"])
FAULTS = (
    HEALTHY,
    SeededFault("boundary ids one later", shifting(1), ["boundaries"]),
    SeededFault("boundary ids one earlier", shifting(-1), ["boundaries"]),
    SeededFault("d2t stored as ids", store_ids, ["d2t"], ["d2t", "t2d"]),
    SeededFault("d2t stored as ids, all in bounds, no t2d", store_ids_in_bounds, ["d2t"]),
    SeededFault("rope base 10000 for 100000", rope(rope_theta=10_000.0), ["rope"]),
    SeededFault("rope base 1000 for 100000", rope(rope_theta=1_000.0), ["rope"]),
    SeededFault("rope scaled linearly by 4", rope(rope_type="linear", factor=4.0), ["rope"]),
    SeededFault("input_layernorm and hidden_norm swapped", swap_norms, ["norms"]),
    SeededFault("norm_before_residual on", setting(norm_before_residual=True), ["norm_before_residual"]),
    SeededFault("norm_output on", setting(norm_output=True), ["norm_output"]),
    SeededFault("states concatenated in reverse", reverse_states, ["state order"]),
    SeededFault("[hidden ; embedding] for [embedding ; hidden]", swap_inputs, ["input order"]),
    SeededFault("float16 that overflows in the file", scaled(2.0**17, torch.float16), faults=["tensors"]),
    SeededFault(
        "float16 that overflows when it runs", scaled(2.0**13, torch.float16), faults=["scores"], dtype="float16"
    ),
    TRUNCATED,
    SeededFault("a target of another vocabulary", enlarge_vocabulary, faults=["vocabulary"]),
    SeededFault("a target of another width", widen, faults=["width"]),
    SeededFault(
        "two at once: boundaries one later, norms swapped", both(shifting(1), swap_norms), ["boundaries", "norms"]
    ),
    SeededFault(
        "two at once: d2t stored as ids, boundaries one later",
        both(store_ids, shifting(1)),
        ["d2t", "boundaries"],
        ["d2t", "t2d"],
    ),
)


def findings_of(diagnosis: Any) -> str:
    """What the doctor said, in a line: its faults, and the readings that it recommends."""
    said = [f"{finding.check}: {finding.seen}" for finding in diagnosis.faults]
    advised = diagnosis.recommendation
    if advised is not None:
        change = f"{advised.present:.2f} to {advised.acceptance_length:.2f}"
        said.append(f"recommended: {'; '.join(advised.changes.values())} (acceptance length {change})")
    return " | ".join(said) or "healthy"


def found(fault: SeededFault, diagnosis: Any) -> bool:
    """Whether the doctor found this fault and invented no other."""
    advised = diagnosis.recommendation
    kinds = set() if advised is None else set(advised.changes)
    faults = {finding.check for finding in diagnosis.faults} - {"acceptance"}
    return kinds == set(fault.kinds) and faults == set(fault.faults)


def main(wanted: Sequence[str]) -> int:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hf_eagle3 import embedded
    from hf_eagle3.doctor import Teacher, examine

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("seeded fault", "what the doctor said", "found"):
        table.add_column(heading)
    missed = 0
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("bfloat16", "float16"):
            chosen = [fault for fault in FAULTS if fault.dtype == dtype and all(word in fault.name for word in wanted)]
            if not chosen:
                continue
            target, tokenizer = embedded.load(getattr(torch, dtype))
            teacher = Teacher(target, tokenizer)
            for fault in chosen:
                head = seed(fault, embedded.head_folder(), Path(folder) / str(FAULTS.index(fault)))
                diagnosis = examine(head, target, tokenizer, teacher=teacher, real_prompts=0)
                right = found(fault, diagnosis)
                missed += not right
                said = findings_of(diagnosis).replace(f"{head}/", "").replace(str(head), "it")
                table.add_row(Text(fault.name), Text(said), "yes" if right else "NO")
                console.print(f"{fault.name}: {'found' if right else 'NOT FOUND'}", style="dim", markup=False)
    console.print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
