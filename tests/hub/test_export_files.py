"""Files of exported heads: targets, embeddings, dtypes, folders; what is unknown; the command and the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_loaders import read
from helpers.export_heads import (
    KINDS,
    LAYERS,
    LAYOUTS,
    WIDER,
    WIDTH,
    Kind,
    drafted,
    embeddings_of,
    in_own_memory,
    save_targets,
    tiny_head,
)
from helpers.targets import GOLDEN, tiny_target
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_eagle3
from hf_eagle3 import Eagle3Config, cli
from hf_eagle3.hub import conventions, export
from hf_eagle3.hub.export_check import TABLES, markdown
from hf_eagle3.hub.export_layouts import EAGLE3_LAYOUTS, layout_named


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    return save_targets(tmp_path_factory.mktemp("targets"))


# ---------------------------------------------------------------------------------------------- unknown conventions


def test_a_field_that_the_table_does_not_know_is_refused(
    targets: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later kind of head would bring it."""
    head = tiny_head(KINDS["plain"])
    monkeypatch.setitem(Eagle3Config.__annotations__, "gate_width", "int | None")
    monkeypatch.setattr(Eagle3Config, "gate_width", None, raising=False)
    for layout in LAYOUTS:
        head.config.gate_width = None
        export.export_head(head, tmp_path / f"{layout}-plain", layout, targets[WIDTH])
        head.config.gate_width = 5
        with pytest.raises(ValueError, match=r"gate_width=5.*not known to say"):
            export.export_head(head, tmp_path / layout, layout, targets[WIDTH])
        assert not (tmp_path / layout).exists()


def test_a_tensor_that_the_table_does_not_know_is_refused(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"])
    head.register_buffer("gate", torch.zeros(1, 1, 96))
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=r"gate, which .* not known to say"):
            export.export_head(head, tmp_path / layout, layout, targets[WIDTH])


def test_every_field_of_a_config_has_a_place_in_the_table() -> None:
    """Or is one of a kind of head that no layout takes: a new one has to be put here or there."""
    latent = {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_interleave"}
    nowhere = {"parallel_drafting", "mask_token_id", *latent, "model_type", "keys_to_ignore_at_inference"}
    for table in TABLES.values():
        assert table.fields <= set(table.kind.__annotations__)
        assert set(table.kind.__annotations__) - table.fields <= nowhere


@pytest.mark.parametrize("layout", ["sglang", "vllm"])
def test_a_head_whose_ids_were_written_as_outputs_goes_on(
    layout: str, targets: dict[int, str], tmp_path: Path
) -> None:
    """As SGLang's are: what it loads can be turned into what another program loads."""
    folder = export.export_head(tiny_head(KINDS["plain"]), tmp_path / "theirs", "sglang", targets[WIDTH])
    head = hf_eagle3.load_head(folder)
    assert head.config.boundaries_from_outputs
    again = hf_eagle3.load_head(export.export_head(head, tmp_path / "again", layout, targets[WIDTH]))
    assert again.config.target_boundaries == head.config.target_boundaries


# ---------------------------------------------------------------------------------------------- targets and embeddings


def test_a_loaded_target_serves_as_well(targets: dict[int, str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, head = AutoModelForCausalLM.from_pretrained(targets[WIDTH]), tiny_head(KINDS["boundaries_left_open"])
    head.save_pretrained(tmp_path / "out", layout="speculators", target=model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": targets[WIDTH],
        "architectures": ["LlamaForCausalLM"],
    }
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 5, 7]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["embed_tokens.weight"], embeddings_of(targets[WIDTH]))


def test_a_layout_that_names_the_target_asks_for_it(tmp_path: Path) -> None:
    for target in (None, tiny_target(num_hidden_layers=LAYERS)):
        with pytest.raises(ValueError, match="pass `target=`"):
            tiny_head(KINDS["plain"]).save_pretrained(tmp_path / "out", layout="speculators", target=target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_heads_target_is_refused(layout: str, targets: dict[int, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass the target that it was trained for"):
        export.export_head(tiny_head(KINDS["plain"]), tmp_path / "out", layout, targets[WIDER])
    shallow = tiny_target(num_hidden_layers=6)
    with pytest.raises(ValueError, match="the target this head was trained for"):
        export.export_head(tiny_head(KINDS["plain"]), tmp_path / "out", layout, shallow)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_behind_the_last_layer_is_refused(layout: str, tmp_path: Path) -> None:
    tiny_target(num_hidden_layers=7).save_pretrained(tmp_path / "target")
    with pytest.raises(ValueError, match=r"leaves the target's last layer|always reads \[2, L//2, L-3\]"):
        export.export_head(tiny_head(KINDS["plain"]), tmp_path / "out", layout, str(tmp_path / "target"))


def test_the_official_boundaries_are_those_of_the_target_given(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"])
    with pytest.raises(ValueError, match="always reads"):
        export.export_head(head, tmp_path / "out", "eagle", tiny_target(num_hidden_layers=12))
    head.save_pretrained(tmp_path / "out", layout="eagle")  # [2, 5, 7] are those of a target of ten layers


def test_embeddings_that_are_the_targets_are_left_out_for_sglang(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["own_embeddings"])
    with pytest.raises(ValueError, match="pass the `target` if they are the same"):
        export.export_head(head, tmp_path / "none", "sglang")
    with torch.no_grad():
        head.embed_tokens.weight.copy_(embeddings_of(targets[WIDTH]))  # type: ignore[union-attr]
    folder = export.export_head(head, tmp_path / "out", "sglang", targets[WIDTH])
    again = in_own_memory(hf_eagle3.load_head(folder))
    assert again.embed_tokens is None
    embeddings = embeddings_of(targets[WIDTH])
    for ours, theirs in zip(drafted(head, embeddings), drafted(again, embeddings), strict=True):
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(layout: str, dtype: torch.dtype, targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"], dtype=dtype)
    folder = export.export_head(head, tmp_path / "out", layout, targets[WIDTH])
    again = hf_eagle3.load_head(folder)
    assert again.dtype == dtype
    config = json.loads((folder / "config.json").read_text())
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert again.state_dict()[name].dtype == tensor.dtype


@pytest.mark.parametrize("name", ["eagle3_llama_head", "eagle3_qwen3_head", "eagle3_sampling_head"])
def test_a_released_head_comes_back_as_it_was_released(name: str, tmp_path: Path) -> None:
    head = hf_eagle3.load_head(GOLDEN / name)
    folder = export.export_head(head, tmp_path / "out", "eagle")
    released, ours = (torch.load(at / "pytorch_model.bin", weights_only=True) for at in (GOLDEN / name, folder))
    assert released.keys() == ours.keys()
    for key, tensor in released.items():
        assert torch.equal(tensor, ours[key]), key
        assert tensor.dtype == ours[key].dtype
    before, after = (json.loads((at / "config.json").read_text()) for at in (GOLDEN / name, folder))
    for key in before.keys() - {"transformers_version", "_name_or_path", "target_hidden_size"}:
        assert after.get(key) == before[key], key
    assert after["rope_theta"] == before.get("rope_theta", 10000.0)


def test_other_files_of_a_folder_are_left_alone(targets: dict[int, str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    for kind in ("plain", "other_boundaries"):  # the second in place of the first
        export.export_head(tiny_head(KINDS[kind]), folder, "sglang", targets[WIDTH])
    assert hf_eagle3.load_head(folder).config.target_boundaries == [2, 4, 9]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_heads_of_two_layouts_never_share_a_folder(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"])
    head.save_pretrained(tmp_path / "ours")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    for layout in LAYOUTS:
        with pytest.raises(OSError, match="already holds a head"):
            head.save_pretrained(tmp_path / "ours", layout=layout, target=targets[WIDTH])
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before
    export.export_head(head, tmp_path / "sglang", "sglang")
    with pytest.raises(OSError, match=r"already holds a head \(model.safetensors\)"):
        export.export_head(head, tmp_path / "sglang", "eagle")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(config: Any, file: Path) -> None:
        raise OSError(28, "No space left on device")

    head = tiny_head(KINDS["plain"])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes").write_text("kept")
    monkeypatch.setattr(export, "_save_json", full_disk)
    for folder in ("there", "new"):
        with pytest.raises(OSError, match="No space"):
            export.export_head(head, tmp_path / folder, "sglang")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["notes", "there"]


def test_what_is_no_head_or_no_layout_is_told(tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"])
    with pytest.raises(ValueError, match="its layouts are: 'eagle', 'sglang', 'vllm', 'speculators'"):
        head.save_pretrained(tmp_path, layout="gguf")
    with pytest.raises(ValueError, match=r"was given False, max_shard_size beside `layout`"):
        head.save_pretrained(tmp_path, False, layout="sglang", max_shard_size="1GB")
    five = tiny_head(Kind({"target_boundaries": None, "num_target_boundaries": 5}, None))
    for layout in ("eagle", "sglang", "vllm"):
        with pytest.raises(ValueError, match=r"does not say which boundaries it reads, which are 5"):
            export.export_head(five, tmp_path / "out", layout)
    with pytest.raises(ValueError, match="the kind 'llama' cannot be exported"):
        export.export_head(tiny_target(), tmp_path, "sglang")
    with pytest.raises(TypeError, match="Got a str to export"):
        export.export_head("a/head", tmp_path, "sglang")


# ---------------------------------------------------------------------------------------------- words


def test_the_docs_show_the_table_that_the_code_obeys() -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    for table in TABLES.values():
        assert markdown(table) in page.read_text(encoding="utf-8")


def test_commands_carry_the_heads_own_tree() -> None:
    head = tiny_head(KINDS["plain"])
    head.generation_config.update(num_assistant_tokens=31, tree_depth=6, tree_top_k=4)
    assert export.serve_command(head, "sglang", "out", "org/target") == (
        "python -m sglang.launch_server --model-path org/target --speculative-algorithm EAGLE3 "
        "--speculative-draft-model-path out --speculative-num-steps 6 --speculative-eagle-topk 4 "
        "--speculative-num-draft-tokens 32"
    )
    assert '\'{"method": "eagle3", "model": "out", "num_speculative_tokens": 6}\'' in export.serve_command(
        head, "vllm", "out"
    )
    assert "total_token=32, depth=5, top_k=4" in export.serve_command(head, "eagle", "out")
    assert export.serve_command(head, "speculators", "out") == "vllm serve out"
    open_tree = tiny_head(KINDS["plain"])
    assert "--speculative-num-steps 8 --speculative-eagle-topk 10" in export.serve_command(open_tree, "sglang", "out")
    assert '"num_speculative_tokens": 3}' in export.serve_command(open_tree, "vllm", "out")
    assert {layout.name for layout in EAGLE3_LAYOUTS} == set(LAYOUTS) == set(conventions.LAYOUTS)
    assert layout_named("vllm", "eagle3").name == "vllm"


# ---------------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["export", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_exports_and_says_how_to_serve(layout: str, targets: dict[int, str], tmp_path: Path) -> None:
    head, out, target = tiny_head(KINDS["plain"]), str(tmp_path / "out"), targets[WIDTH]
    head.save_pretrained(tmp_path / "head")
    shown = run(str(tmp_path / "head"), "--layout", layout, "--out", out, "--target", target)
    assert shown.exit_code == 0, shown.output
    assert f"{out}: {layout} layout, float32, 0.1 MiB" in shown.output
    assert export.serve_command(head, layout, out, target) in shown.output
    assert hf_eagle3.load_head(out).config.boundaries_for(LAYERS) == [2, 5, 7]


def test_the_command_turns_one_layout_into_another(targets: dict[int, str], tmp_path: Path) -> None:
    theirs, out = tmp_path / "speculators", tmp_path / "out"
    export.export_head(tiny_head(KINDS["norm_output"]), theirs, "speculators", targets[WIDTH], "0.9.0")
    shown = run(str(theirs), "--layout", "vllm", "--out", str(out))
    assert "--engine-version 0.33.0" in str(shown.exception)
    assert not out.exists()
    shown = run(str(theirs), "--layout", "vllm", "--out", str(out), "--engine-version", "0.33.0")
    assert shown.exit_code == 0, shown.output
    assert read("vllm-0.33.0", out, LAYERS) == read("vllm-0.33.0", theirs, LAYERS)
