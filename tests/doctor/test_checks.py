"""The checks of files and configs: all problems of a head, each in a sentence; and the command around them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, EagleConfig, EagleDraftModel, cli
from hf_eagle3.doctor import Diagnosis, Examination, Severity, Teacher, examine
from hf_eagle3.doctor.prompts import PROMPTS
from hf_eagle3.doctor.report import rendered
from hf_eagle3.doctor.static_checks import Case, run_checks
from hf_eagle3.doctor.subject import open_subject


@pytest.fixture
def target(pair_folders):
    return AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()


@pytest.fixture(scope="module")
def tokenizer(pair_folders):
    return AutoTokenizer.from_pretrained(pair_folders.target)


@pytest.fixture
def folder(pair_folders, tmp_path: Path) -> Path:
    shutil.copytree(pair_folders.head, tmp_path / "head")
    return tmp_path / "head"


def _edit(folder: Path, drop: tuple[str, ...] = (), tensors: dict | None = None, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in drop}
    save_file({**kept, **(tensors or {})}, folder / "model.safetensors")


def _said(diagnosis: Diagnosis, severity: Severity = Severity.fault) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.severity is severity:
            said.setdefault(finding.check, []).append(f"{finding.seen} {finding.advice}".strip())
    return said


def test_every_problem_is_told_and_not_only_the_first(folder: Path, target, tokenizer) -> None:
    norm = torch.full((32,), float("nan"))
    extra = {
        "norm.weight": norm,
        "layers.0.hidden_norm.weight": torch.zeros(32),
        "midlayer.extra.weight": norm.clone(),
    }
    _edit(folder, ("lm_head.weight",), extra, vocab_size=70, target_boundaries=[2, 4, 9], max_position_embeddings=64)
    diagnosis = examine(folder, target, tokenizer)
    faults, warnings = _said(diagnosis), _said(diagnosis, Severity.warning)
    assert "made for a target of 70 tokens but the target has 64" in faults["vocabulary"][0]
    assert "boundaries [2, 4, 9] but the target has 8 layers" in faults["boundaries"][0]
    told = " ".join(faults["tensors"])
    assert "missing: lm_head.weight" in told
    assert "midlayer.extra.weight" in told
    assert "`norm.weight` holds 32 values that are NaN" in told
    assert "hidden_norm.weight` has weights of mean size 0" in warnings["norms"][0]
    assert "made for 64 positions, the target for 256" in warnings["context"][0]
    assert not diagnosis.healthy
    assert diagnosis.rounds == []


@pytest.mark.parametrize(
    ("fields", "check", "seen"),
    [
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "draft_vocab_size": None},
            "layout",
            "which is no EAGLE-3 head",
        ),
        ({"architectures": ["DFlashDraftModel"], "model_type": "qwen3"}, "layout", "It is a DFlash drafter"),
        ({"norm_before_fc": True, "fc_norm": True}, "config", "were both given"),
        ({"target_hidden_size": 48}, "width", "reads target states of width 48 but the target's are 32 wide"),
    ],
)
def test_a_head_that_cannot_be_loaded_is_a_finding(folder: Path, target, tokenizer, fields, check, seen) -> None:
    _edit(folder, **fields)
    faults = _said(examine(folder, target, tokenizer))
    assert seen in faults[check][0]


def test_missing_and_cut_weights_are_findings(folder: Path, target, tokenizer) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "truncated" in _said(examine(folder, target, tokenizer))["weights"][0]
    weights.unlink()
    assert "holds none of model.safetensors" in _said(examine(folder, target, tokenizer))["weights"][0]


def test_what_the_target_cannot_do_is_a_finding(pair_folders, target, tokenizer) -> None:
    target.config._attn_implementation = "flex_attention"
    target.generation_config.eos_token_id = 5
    target.generation_config.pad_token_id = 5
    findings = list(_target_and_chat(target, tokenizer))
    assert any("cannot express a draft tree" in finding.seen for finding in findings)
    template = next(finding for finding in findings if finding.check == "chat template")
    assert "ends an answer with token 3 (<end>), but the target stops at [5]" in template.seen


def _target_and_chat(target, tokenizer):
    from hf_eagle3.doctor.chat_checks import chat_findings
    from hf_eagle3.doctor.static_checks import target_findings

    yield from target_findings(target)
    yield from chat_findings(target, tokenizer, None)


def test_a_rope_that_differs_is_a_note(folder: Path, target, tokenizer) -> None:
    _edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    teacher = Teacher(target, tokenizer, PROMPTS[:4], new_tokens=12)
    diagnosis = examine(folder, target, tokenizer, teacher=teacher, real_prompts=0)
    assert "rope base 77, the target rope base 10000" in _said(diagnosis, Severity.note)["rope"][0]


@pytest.mark.parametrize("kind", ["eagle1", "parallel"])
def test_a_head_of_another_kind_is_examined_as_far_as_every_head_can_be(
    kind: str, target, tokenizer, tmp_path: Path
) -> None:
    head = (
        EagleDraftModel(EagleConfig.from_target(target.config))
        if kind == "eagle1"
        else Eagle3DraftModel(Eagle3Config.from_target(target.config, parallel_drafting=True, mask_token_id=5))
    )
    head.save_pretrained(tmp_path)
    teacher = Teacher(target, tokenizer, PROMPTS[:4], new_tokens=12)
    examination = Examination(tmp_path, target, tokenizer, teacher=teacher, real_prompts=1)
    diagnosis = examination.run()
    assert examination.subject.config is None
    assert {"pair", "attention", "cache"} <= {finding.check for finding in diagnosis.findings}
    assert diagnosis.real["as it is"] >= 1
    assert diagnosis.rounds == []


def test_a_random_head_is_told_to_be_worth_nothing(folder: Path, target, tokenizer) -> None:
    teacher = Teacher(target, tokenizer, PROMPTS[:6], new_tokens=16)
    diagnosis = examine(folder, target, tokenizer, teacher=teacher)
    assert "trained for this very target" in _said(diagnosis)["acceptance"][0]
    assert set(_said(diagnosis)) == {"acceptance"}
    assert diagnosis.recommendation is None
    assert diagnosis.real["as it is"] >= 1
    assert len(diagnosis.rounds[0]) > 10
    assert json.loads(json.dumps(diagnosis.to_dict()))["healthy"] is False
    assert list(rendered(diagnosis))


def test_weights_that_float16_cannot_hold_are_a_fault(folder: Path, target, tokenizer) -> None:
    weight = load_file(folder / "model.safetensors")["fc.weight"]
    weight[0, 0] = 1e6
    _edit(folder, tensors={"fc.weight": weight})
    subject = open_subject(folder)
    found = [
        each
        for each in run_checks(Case(subject, subject.config, subject.tensors, target.half()))
        if each.check == "dtype"
    ]
    assert [each.severity for each in found] == [Severity.fault]
    assert "Weights up to 1e+06 do not fit float16" in found[0].seen


def test_a_draft_vocabulary_that_cannot_say_the_answers_is_warned_of(target, tokenizer, tmp_path: Path) -> None:
    """Four tokens of sixty-four, none of which the target writes."""
    teacher = Teacher(target, tokenizer, PROMPTS[:6], new_tokens=16)
    written = {token for row in teacher.answered for token in row.ids[row.start :].tolist()}
    config = Eagle3Config.from_target(target.config, draft_vocab_size=4)
    head = Eagle3DraftModel(config)
    head.set_draft_vocabulary(torch.tensor([token for token in range(64) if token not in written][:4]))
    head.save_pretrained(tmp_path)
    diagnosis = examine(tmp_path, target, tokenizer, teacher=teacher)
    assert "holds 0.0% of" in _said(diagnosis, Severity.warning)["coverage"][0]


# ---------------------------------------------------------------------- the command


def _run(*arguments: str):
    return CliRunner().invoke(cli.app, ["doctor", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_prints_writes_json_and_ends_with_one(pair_folders, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shown = _run(pair_folders.head, pair_folders.target, "--device", "cpu", "--json", str(out))
    assert shown.exit_code == 1, shown.output
    for words in ("attention reads [hidden ; embedding]", "norm_before_residual on", "1 fault, see above"):
        assert words in shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["head"] == pair_folders.head
    assert {finding["severity"] for finding in record["findings"]} <= {"ok", "note", "warning", "fault"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-folder/head/x"], "no-such-folder/head/x"),
        (["some/head", "--write"], "--write was given, but some/head is no folder"),
        (["x", "--write", "--write-to", "y"], "--write and --write-to were both given"),
    ],
)
def test_what_a_user_can_mend_ends_with_two(
    monkeypatch: pytest.MonkeyPatch, capsys, pair_folders, arguments: list[str], message: str
) -> None:
    options = ["--device", "cpu"]
    named = [arguments[0], pair_folders.target, *arguments[1:], *options]
    monkeypatch.setattr(sys, "argv", ["hf-eagle3", "doctor", *named])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
