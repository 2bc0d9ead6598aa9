"""Every catalogued format: loaded, and computing what the reference says, or refused in a sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers import layouts_report
from helpers.checkpoint_catalogue import Variant, synthesise, variant, variants
from helpers.layout_verdicts import judge
from transformers import AutoModel

import hf_eagle3
from hf_eagle3 import Eagle3DraftModel
from hf_eagle3.head import DraftHead
from hf_eagle3.layouts import recognise

CASES = [
    pytest.param(variant, options, id="-".join((variant.id, *options)))
    for variant in variants()
    for options in [(), *((option,) for option in variant.options)]
]


@pytest.mark.parametrize(("variant", "options"), CASES)
def test_it_loads_and_computes_what_it_was_made_for(
    variant: Variant, options: tuple[str, ...], tmp_path: Path
) -> None:
    verdict = judge(variant, tmp_path, options)
    print(verdict.taken, verdict)
    assert verdict.good


def test_a_wrong_forward_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A thousandth more in what is fused is enough, but where a norm takes it away again."""
    plain = Eagle3DraftModel.fuse
    monkeypatch.setattr(Eagle3DraftModel, "fuse", lambda head, features: plain(head, features * 1.001))
    verdict = judge(variant("modelopt-gpt_oss_v3"), tmp_path / "norm")
    assert verdict.good
    verdict = judge(variant("eagle3_official-llama31_8b"), tmp_path / "plain")
    assert not verdict.good
    assert "DIFFERS" in str(verdict)


def test_the_report_is_a_line_each_and_a_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [variant(name) for name in ("peagle-qwen3_8b", "modelopt-kimi_k2_mla", "eagle3_1-qwen3_30b")]
    monkeypatch.setattr(layouts_report, "variants", lambda: few)
    assert layouts_report.main([]) == 0
    *lines, count = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in lines] == [each.id for each in few]
    assert all("matches the reference to" in text and "layout " in text for text in lines)
    assert "mask token 5" in lines[0]
    assert "attention over a latent of 8" in lines[1]
    assert count == "3 of 3 load and match the reference, 0 fail"
    assert len(list(layouts_report.cases(departures=False))) == 3


def test_the_report_fails_where_one_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(layouts_report, "variants", lambda: [variant("eagle3_official-llama31_8b")])
    assert layouts_report.main(["--departures"]) == 0
    assert "are refused as they should be, 0 fail" in capsys.readouterr().out
    monkeypatch.setattr(Eagle3DraftModel, "to_target_ids", lambda head, ids: ids)
    assert layouts_report.main([]) == 1
    assert "its draft tokens mean other target tokens" in capsys.readouterr().out


def test_there_are_45() -> None:
    assert len(list(layouts_report.cases(departures=False))) == 45


def test_the_log_tells_layout_and_conventions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = synthesise(variant("speculators_eagle3-trainer_2026"), tmp_path)
    with caplog.at_level(logging.INFO, logger="hf_eagle3"):
        head = hf_eagle3.load_head(tmp_path)
    assert not head.training
    assert head.dtype == made.state_dict["lm_head.weight"].dtype
    for said in ("layout speculators", "boundaries [2, 6, 8]", "norm_before_residual", "norm_before_fc",
                 "norm_output", "own_embeddings", "window 4", "base"):  # fmt: skip
        assert said in caplog.text


@pytest.mark.parametrize("kind", ["dflash", "dflash_speculators", "mtp", "medusa"])
def test_other_drafters_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    synthesise(variant(f"not_eagle-{kind}"), tmp_path)
    names = {"dflash": "DFlash", "mtp": "multi-token-prediction", "medusa": "Medusa"}
    for load in (hf_eagle3.load_head, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=names[kind.split("_")[0]]):
            load(tmp_path)


@pytest.mark.parametrize("variant", [each for each in variants() if not each.refuse], ids=lambda each: each.id)
def test_saved_as_ours_it_is_the_same_head(variant: Variant, tmp_path: Path) -> None:
    """Through `AutoModel`, which is what most people call, wherever the config tells a head from a plain model."""
    made = synthesise(variant, tmp_path / "theirs")
    told = recognise(made.config) is not None
    head = (AutoModel.from_pretrained if told else hf_eagle3.load_head)(tmp_path / "theirs")
    assert isinstance(head, DraftHead)
    head.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fields = set(type(head.config).__annotations__) - {"model_type", "keys_to_ignore_at_inference"}
    assert {name: getattr(head.config, name) for name in fields} == {
        name: getattr(again.config, name) for name in fields
    }
