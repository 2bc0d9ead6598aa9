"""benchmarks/verify_step.py on the CPU: the same logits, a record, and nothing timed that computes something else."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hf_eagle3 import attention

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "verify_step.py"
BRIEF = ["--dry-run", "--nodes", "9", "--rounds", "2"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["verify_step"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def target(script: ModuleType) -> Any:
    return script.build_target(script.TINY, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("other", sorted({*attention.SUPPORTED_BACKENDS} - {"sdpa"}))
def test_a_dry_run_from_end_to_end(script: ModuleType, other: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    given = [*BRIEF, "--contexts", "24", "40", "--implementations", other, "sdpa", "--json", str(path)]
    assert script.main(given) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["dry_run"] is True
    assert [row["context"] for row in record["contexts"]] == [24, 40]
    for row in record["contexts"]:
        assert set(row["steps"]) == {other, "sdpa", "one token"}
        assert row["apart"][other] < 1e-4
        steps = row["steps"]
        assert row["ratios"]["seconds"][f"sdpa / {other}"] == steps["sdpa"]["seconds"] / steps[other]["seconds"]
        assert set(row["ratios"]) == {"seconds"}  # a CPU has no kernels to add up
        assert steps["sdpa"]["lowest"] <= steps["sdpa"]["seconds"] <= steps["sdpa"]["highest"]


@torch.inference_mode()
def test_a_verification_is_of_the_tree_and_leaves_the_cache_as_it_was(script: ModuleType, target: Any) -> None:
    bench = script.Bench(target, 20, 9)
    before = [layer.keys.clone() for layer in bench.cache.layers]
    logits = bench.verification()
    bench.take_back()
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(bench.cache.layers, before, strict=True))
    path = [8]
    while (parent := int(bench.tree.parents[0, path[0]])) >= 0:
        path.insert(0, parent)
    plain = target(input_ids=bench.tree.tokens[:, path], past_key_values=bench.cache).logits
    assert len(path) > 1
    torch.testing.assert_close(logits[:, path], plain, atol=1e-5, rtol=1e-5)
    bench.take_back()
    torch.testing.assert_close(bench.one_token(), plain[:, :1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_computes_something_else_is_not_timed(
    script: ModuleType, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additive masks of zeros: every node sees every other one."""
    from hf_eagle3 import verification

    right = verification.tree_mask

    def blind(tree: Any, committed: torch.Tensor, backend: str, *rest: Any) -> torch.Tensor:
        mask = right(tree, committed, backend, *rest)
        return torch.zeros_like(mask) if backend == "eager" else mask

    monkeypatch.setattr(verification, "tree_mask", blind)
    monkeypatch.setattr(script.Bench, "seconds", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(ValueError, match="do not compute the same, and nothing was timed"):
        script.measure(script.Bench(target, 24, 9), ["eager", "sdpa"], 1)
    monkeypatch.setitem(script.TOLERANCE, torch.float32, script.TOLERANCE[torch.bfloat16])
    with pytest.raises(ValueError, match="nothing was timed"):  # what bfloat16 is allowed would not hide it either
        script.check_agreement(script.Bench(target, script.CHECKED_CONTEXT, 60), ["eager", "sdpa"])


@pytest.mark.parametrize("name", ["--contexts", "--nodes", "--rounds", "--layers"])
def test_numbers_that_cannot_be_are_refused(script: ModuleType, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("0", "-4"):
        with pytest.raises(SystemExit):
            script.main(["--dry-run", name, number])
        assert f"error: argument {name}: " in capsys.readouterr().err


def test_refusals_are_a_sentence(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script.main([*BRIEF, "--implementations", "flash_attention_2"]) == 1
    assert "cannot express a draft tree" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--implementations", "sdpa"]) == 1
    assert "give --dry-run" in capsys.readouterr().err
    assert script.main([*BRIEF, "--json", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err
