"""Heads of EAGLE-1 in other programs' layouts: read back bit for bit, by the reference, and as engines read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import Facts, Sizes, Synthetic, synthesise, variant, variants
from helpers.engine_loaders import Refused
from helpers.engine_loaders_eagle1 import Reading, read
from helpers.export_eagle1_heads import KINDS, LAYOUTS, drafted, inputs, tiny_head, weights_of
from helpers.export_heads import LAYERS, STEPS, VOCABULARY, WIDER, WIDTH, in_own_memory, save_targets
from helpers.reference_heads import reference_steps
from helpers.sentences import sentence
from helpers.targets import GOLDEN, tiny_target
from safetensors.torch import load_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from typer.testing import CliRunner

import hf_eagle3
from hf_eagle3 import EagleDraftModel, cli
from hf_eagle3.hub import export, export_check
from hf_eagle3.hub.conventions_eagle1 import EAGLE1

READERS = {"eagle": ("official-v1", "official"), "sglang": ("sglang",), "vllm": ("vllm",)}
PAIRS = [(kind, layout) for kind in KINDS for layout in LAYOUTS]
SAID = [pair for pair in PAIRS if pair[1] in KINDS[pair[0]].layouts]
REFUSED = [pair for pair in PAIRS if pair[1] not in KINDS[pair[0]].layouts]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    return save_targets(tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="module")
def target(targets: dict[int, str]) -> str:
    return targets[WIDTH]


@pytest.fixture(scope="module")
def exported(target: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a kind of head in a layout that can say it."""
    root = tmp_path_factory.mktemp("exported")

    @cache
    def folder(kind: str, layout: str) -> Path:
        path = root / f"{kind}-{layout}"
        tiny_head(KINDS[kind], target).save_pretrained(path, layout=layout, target=target)
        return path

    return folder


@pytest.mark.parametrize(("kind", "layout"), SAID)
def test_read_back_it_is_the_same_head(
    kind: str, layout: str, target: str, exported: Callable[[str, str], Path]
) -> None:
    head, again = tiny_head(KINDS[kind], target), in_own_memory(hf_eagle3.load_head(exported(kind, layout)))
    assert type(again) is EagleDraftModel
    for ours, theirs in zip(drafted(head, target), drafted(again, target), strict=True):
        assert torch.equal(ours, theirs)
    # The official program alone finds embeddings in the file, and it always does.
    assert again.config.own_embeddings == (layout == "eagle")
    assert not again.config.own_lm_head
    for name in ("rms_norm_eps", "max_position_embeddings", "hidden_act", "head_dim", "num_hidden_layers"):
        assert getattr(again.config, name) == getattr(head.config, name)


@pytest.mark.parametrize(("kind", "layout"), [pair for pair in SAID if KINDS[pair[0]].rules is not None])
def test_its_files_compute_what_the_reference_does(
    kind: str, layout: str, target: str, exported: Callable[[str, str], Path]
) -> None:
    folder, given = exported(kind, layout), weights_of(target)
    made = synthetic(kind, layout, folder, tiny_head(KINDS[kind], target).config)
    states, tokens = inputs(torch.float64)
    embeddings, output = given["embed_tokens.weight"].double(), given["lm_head.weight"].double()
    wanted = reference_steps(made, [states], tokens, embeddings, output, STEPS)
    for found, step in zip(drafted(hf_eagle3.load_head(folder).double(), target), wanted, strict=True):
        # Norms and rotations are in float32 here, and without a last norm logits grow along the chain.
        near = 1e-5 * float(step.draft_logits.abs().max())
        torch.testing.assert_close(found, step.draft_logits, atol=near, rtol=0.0)


def synthetic(kind: str, layout: str, folder: Path, config: Any) -> Synthetic:
    rules, pickled = KINDS[kind].rules, folder / "pytorch_model.bin"
    assert rules is not None
    state = torch.load(pickled, weights_only=True) if layout == "eagle" else load_file(folder / "model.safetensors")
    sizes = Sizes(
        H=WIDTH, Ht=WIDTH, A=4, K=2, D=config.head_dim, I=48, Vt=VOCABULARY, Vd=VOCABULARY, N=1
    )  # fmt: skip
    facts = Facts(
        target_hidden_size=WIDTH,
        target_layers=LAYERS,
        target_vocab_size=VOCABULARY,
        boundaries=(),
        uses_post_norm=True,
        rms_norm_eps=config.rms_norm_eps,
        target_ids=torch.arange(VOCABULARY),
    )
    embeddings = "own" if layout == "eagle" else "target"
    return Synthetic(
        variant=variants()[0],
        options=(),
        folder=folder,
        files=(),
        sizes=sizes,
        config={},
        state_dict=state,
        conventions=replace(rules, embeddings=embeddings, fc_bias="fc.bias" in state),
        facts=facts,
        completed=(),
        refuse="",
    )


# ---------------------------------------------------------------------------------------------- as engines read them


def expected(kind: str, head: EagleDraftModel, layout: str) -> Reading:
    rules, config = KINDS[kind].rules or KINDS["plain"].rules, head.config
    assert rules is not None
    rest = {name: value for name, value in config.rope_parameters.items() if name not in ("rope_type", "rope_theta")}
    return Reading(
        layers=config.num_hidden_layers,
        head_dim=config.head_dim,
        norms=config.layernorms,
        biases={name for name, weight in head.named_parameters() if name.endswith("bias") and weight.any()},
        own_embeddings=layout == "eagle",
        proposed=config.draft_vocab_size,
        rope=(rules.rope.base, rules.rope.kind, tuple(sorted(rest.items()))),
    )


@pytest.mark.parametrize(("kind", "layout"), SAID)
def test_every_engine_reads_it_as_it_is(
    kind: str, layout: str, target: str, exported: Callable[[str, str], Path]
) -> None:
    for engine in READERS[layout]:
        found = read(engine, exported(kind, layout))
        assert found == expected(kind, tiny_head(KINDS[kind], target), layout), engine


@pytest.mark.parametrize(("kind", "layout"), REFUSED)
def test_what_a_layout_cannot_say_is_refused(kind: str, layout: str, target: str, tmp_path: Path) -> None:
    head = tiny_head(KINDS[kind], target)
    said = sentence(ValueError, lambda: head.save_pretrained(tmp_path / "out", layout=layout, target=target))
    able = " or ".join(KINDS[kind].layouts)
    assert said.startswith("This head ")
    assert said.endswith(f"; export it to {able}." if able else "; keep it in the layout of hf-eagle3.")
    assert not any(tmp_path.iterdir())


# Heads that the engine would compute rightly and loaders take for plain models, or whose fault is one of numbers only.
OF_NUMBERS = {("two_layers", "eagle"), ("two_layers", "vllm")}
OF_NUMBERS |= {(kind, layout) for kind in ("dynamic", "own_lm_head") for layout in LAYOUTS}
OF_NUMBERS |= {("own_embeddings", "sglang"), ("own_embeddings", "vllm")}


@pytest.mark.parametrize(("kind", "layout"), [pair for pair in REFUSED if pair not in OF_NUMBERS])
def test_no_refusal_is_idle(
    kind: str, layout: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written all the same, some engine would misread it."""
    monkeypatch.setattr(export_check, "TABLES", {"eagle1": replace(EAGLE1, conventions=())})
    monkeypatch.setattr(export_check, "_refuse_unknown", lambda case, name, table: None)
    head = tiny_head(KINDS[kind], target)
    folder = export.export_head(head, tmp_path / "out", layout, target)
    assert any(misread(engine, folder, expected(kind, head, layout)) for engine in READERS[layout])


def misread(engine: str, folder: Path, right: Reading) -> bool:
    try:
        return read(engine, folder) != right
    except Refused:
        return True


def test_the_played_engines_know_the_released_heads() -> None:
    found = read("official-v1", GOLDEN / "eagle1_llama_head")
    assert (found.rope, found.own_embeddings, found.biases) == ((500000.0, "default", ()), True, set())


# ---------------------------------------------------------------------------------------------- targets


def test_without_the_target_a_borrowing_head_goes_to_engines_only(target: str, tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], target)
    said = sentence(ValueError, lambda: head.save_pretrained(tmp_path / "out", layout="eagle"))
    assert "taken from the `target`; pass it" in said
    for layout in ("sglang", "vllm"):
        head.save_pretrained(tmp_path / layout, layout=layout)
    with pytest.raises(ValueError, match="pass the `target` if they are the same"):
        tiny_head(KINDS["targets_lm_head"], target).save_pretrained(tmp_path / "out", layout="vllm")


def test_another_heads_target_is_refused(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], targets[WIDTH])
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match="pass the target that it was trained for"):
            head.save_pretrained(tmp_path / "out", layout=layout, target=targets[WIDER])


def test_a_loaded_target_that_ties_its_embeddings(tmp_path: Path) -> None:
    model = tiny_target(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "target")
    weight = model.get_input_embeddings().weight.detach()
    for named in (model, str(tmp_path / "target")):
        known = export.read_target(named)
        assert torch.equal(known.embeddings(), weight)
        assert torch.equal(known.output_embeddings(), weight)
        assert not known.scales_embeddings()


def test_a_target_that_scales_its_embeddings_is_no_target_of_theirs(target: str, tmp_path: Path) -> None:
    """The head reads them with the factor, as the target's layer gives them; whoever takes the weights, without."""
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    scaling = Gemma3ForCausalLM(config)
    scaling.save_pretrained(tmp_path / "target")
    for layout in LAYOUTS:
        for named in (scaling, str(tmp_path / "target")):
            with pytest.raises(ValueError, match="multiplies by a factor"):
                tiny_head(KINDS["plain"], target).save_pretrained(tmp_path / "out", layout=layout, target=named)
    tiny_head(KINDS["own_embeddings"], target).save_pretrained(tmp_path / "own", layout="eagle", target=scaling)


# ---------------------------------------------------------------------------------------------- files and words


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_dtype_is_kept(layout: str, target: str, tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], target, torch.bfloat16)
    folder = export.export_head(head, tmp_path / "out", layout, target)
    again = hf_eagle3.load_head(folder)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_golden_head_comes_back_as_the_official_program_wrote_it(tmp_path: Path) -> None:
    released = GOLDEN / "eagle1_llama_head"
    folder = export.export_head(hf_eagle3.load_head(released), tmp_path / "out", "eagle")
    assert_released(folder, json.loads((released / "config.json").read_text()), stored_in(released))


@pytest.mark.parametrize("handle", ["llama2", "llama3", "qwen2"])
def test_released_heads_come_back_as_they_were(handle: str, tmp_path: Path) -> None:
    made = synthesise(variant(f"eagle1_2_official-{handle}"), tmp_path / "released")
    folder = export.export_head(hf_eagle3.load_head(made.folder), tmp_path / "out", "eagle")
    assert_released(folder, made.config, made.state_dict)


def stored_in(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def assert_released(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    ours, after = stored_in(folder), json.loads((folder / "config.json").read_text())
    assert ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, ours[name])
        assert tensor.dtype == ours[name].dtype
    for name in config.keys() - {"transformers_version", "pretraining_tp", "model_type"}:
        assert after.get(name) == config[name], name
    assert ("bias" in after) == ("fc.bias" not in tensors)


def test_a_layout_of_an_engine_turns_into_anothers(target: str, tmp_path: Path) -> None:
    """By the command; the zeros that SGLang needs are not there any more."""
    head = tiny_head(KINDS["plain"], target)
    head.save_pretrained(tmp_path / "sglang", layout="sglang")
    out = str(tmp_path / "vllm")
    options = ["--layout", "vllm", "--out", out]
    shown = CliRunner().invoke(cli.app, ["export", str(tmp_path / "sglang"), *options], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert '"method": "eagle"' in shown.output
    assert "fc.bias" not in load_file(tmp_path / "vllm" / "model.safetensors")
    assert export.serve_command(head, "sglang", out, "a/b").count(" --speculative-algorithm EAGLE ") == 1
    assert "use_eagle3=False" in export.serve_command(head, "eagle", out)


def test_speculators_is_refused_in_a_sentence(target: str, tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], target)
    said = sentence(ValueError, lambda: head.save_pretrained(tmp_path / "out", layout="speculators", target=target))
    assert "gave up heads of EAGLE-1" in said
    assert said.endswith("its layouts are: 'eagle', 'sglang', 'vllm'.")


def test_a_tensor_that_the_table_does_not_know_is_refused(target: str, tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], target)
    head.register_buffer("gate", torch.zeros(1))
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=r"gate, which .* not known to say"):
            export.export_head(head, tmp_path / layout, layout, target)
