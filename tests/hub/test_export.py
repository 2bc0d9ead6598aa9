"""Heads in other programs' layouts: read back bit for bit, computing what the reference does, read as engines do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import Facts, Sizes, Synthetic, variants
from helpers.checkpoint_conventions import Rope
from helpers.engine_loaders import PROJECTIONS, Reading, Refused, read
from helpers.export_heads import BOTH, KINDS, LAYERS, VOCABULARY, WIDTH, Kind, tiny_head
from helpers.reference_heads import reference_steps
from helpers.targets import GOLDEN, tiny_target
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_eagle3
from hf_eagle3 import Eagle3Config, cli
from hf_eagle3.hub import conventions, export
from hf_eagle3.hub.export_layouts import EAGLE3_LAYOUTS, layout_named

LENGTH, STEPS = 9, 4
NEWEST = {"eagle": None, "sglang": "0.5.23", "vllm": "0.33.0", "speculators": "0.9.0"}
# Who reads a layout: versions that need not be named when a head is exported, and the newest.
READERS = {
    "eagle": ("official",),
    "sglang": ("sglang-0.5.6", "sglang-0.5.23"),
    "vllm": ("vllm-0.33.0",),
    "speculators": ("vllm-0.33.0",),
}
PAIRS = [(kind, layout) for kind in KINDS for layout in NEWEST]
SAID = [pair for pair in PAIRS if pair[1] in KINDS[pair[0]].layouts]
REFUSED = [pair for pair in PAIRS if pair[1] not in KINDS[pair[0]].layouts]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Folders of a target as wide as the heads, and of a wider one."""
    folder = tmp_path_factory.mktemp("targets")
    for width in (WIDTH, 48):
        model = tiny_target(num_hidden_layers=LAYERS, hidden_size=width)
        model.save_pretrained(folder / str(width), save_original_format=False)
    return {width: str(folder / str(width)) for width in (WIDTH, 48)}


@pytest.fixture(scope="module")
def exported(targets: dict[int, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a kind of head in a layout that can say it."""
    root = tmp_path_factory.mktemp("exported")

    @cache
    def folder(kind: str, layout: str) -> Path:
        since, path = KINDS[kind].newer.get(layout), root / f"{kind}-{layout}"
        tiny_head(KINDS[kind]).save_pretrained(
            path, layout=layout, target=target_of(kind, targets), engine_version=since
        )
        return path

    return folder


def target_of(kind: str, targets: dict[int, str]) -> str:
    return targets[KINDS[kind].fields.get("target_hidden_size", WIDTH)]


def embeddings_of(target: str) -> torch.Tensor:
    return load_file(f"{target}/model.safetensors")["model.embed_tokens.weight"]


def inputs(head: Any, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    count, width = head.config.num_target_boundaries, head.config.target_hidden_size
    states = [torch.randn(LENGTH, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]
    return states, torch.randint(0, VOCABULARY, (LENGTH + STEPS,), generator=generator)


def in_own_memory(head: Any) -> Any:
    """Weights mapped from a file lie at odd addresses, where matrix products round differently."""
    for weight in head.parameters():
        weight.data = weight.data.clone()
    return head


@torch.no_grad()
def drafted(head: Any, embeddings: torch.Tensor) -> list[torch.Tensor]:
    """Logits of every step: all states at once, then a chain from the last."""
    states, tokens = inputs(head, head.dtype)
    embed = head.embed_tokens.weight if head.embed_tokens is not None else embeddings.to(head.dtype)
    hidden, cache, found = head.fuse(torch.cat(states, dim=-1)[None]), None, []
    for step in range(STEPS):
        new = tokens[None, 1 : LENGTH + 1] if step == 0 else tokens[None, LENGTH + step : LENGTH + step + 1]
        out = head(hidden, inputs_embeds=embed[new], past_key_values=cache, use_cache=True)
        hidden, cache = out.last_hidden_state[:, -1:], out.past_key_values
        found.append(out.logits[0])
    return found


@pytest.mark.parametrize(("kind", "layout"), SAID)
def test_read_back_it_is_the_same_head(
    kind: str, layout: str, targets: dict[int, str], exported: Callable[[str, str], Path]
) -> None:
    head, embeddings = tiny_head(KINDS[kind]), embeddings_of(target_of(kind, targets))
    again = in_own_memory(hf_eagle3.load_head(exported(kind, layout)))
    for ours, theirs in zip(drafted(head, embeddings), drafted(again, embeddings), strict=True):
        assert torch.equal(ours, theirs)
    assert again.config.boundaries_for(LAYERS) == head.config.boundaries_for(LAYERS)
    assert torch.equal(again.d2t, head.d2t)
    for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "sliding_window", "qk_norm"):
        assert getattr(again.config, name) == getattr(head.config, name)
    for name in ("rms_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(again.config, name) == getattr(head.config, name)


@pytest.mark.parametrize(("kind", "layout"), [pair for pair in SAID if KINDS[pair[0]].rules is not None])
def test_its_files_compute_what_the_reference_does(
    kind: str, layout: str, targets: dict[int, str], exported: Callable[[str, str], Path]
) -> None:
    """The reference reads the exported tensors by their names there, and knows the rules from a table of its own."""
    head, folder = tiny_head(KINDS[kind]), exported(kind, layout)
    made = synthetic(KINDS[kind], head, layout, folder)
    states, tokens = inputs(head, torch.float64)
    known = [*states, states[-1]] if made.facts.boundaries else states
    embeddings = embeddings_of(target_of(kind, targets)).double()
    expected = reference_steps(made, known, tokens, embeddings, embeddings, STEPS)
    for found, step in zip(drafted(hf_eagle3.load_head(folder).double(), embeddings), expected, strict=True):
        torch.testing.assert_close(found, step.draft_logits, atol=1e-5, rtol=1e-5)


def synthetic(kind: Kind, head: Any, layout: str, folder: Path) -> Synthetic:
    assert kind.rules is not None
    config, pickled = head.config, folder / "pytorch_model.bin"
    state = torch.load(pickled, weights_only=True) if pickled.exists() else load_file(folder / "model.safetensors")
    embeddings = "own" if "embed_tokens.weight" in state else "target"
    prefix = "midlayer." if layout in ("eagle", "sglang") else "layers.{i}."
    sizes = Sizes(
        H=WIDTH, Ht=config.target_hidden_size, A=4, K=2, D=config.head_dim, I=48, Vt=VOCABULARY,
        Vd=config.draft_vocab_size, N=config.num_target_boundaries,
    )  # fmt: skip
    facts = Facts(
        target_hidden_size=config.target_hidden_size,
        target_layers=LAYERS,
        target_vocab_size=VOCABULARY,
        boundaries=kind.rules.boundaries,
        uses_post_norm=not kind.rules.boundaries,
        rms_norm_eps=config.rms_norm_eps,
        target_ids=head.to_target_ids(torch.arange(config.draft_vocab_size)),
    )
    return Synthetic(
        variant=variants()[0],
        options=(),
        folder=folder,
        files=(),
        sizes=sizes,
        config={},
        state_dict=state,
        conventions=replace(kind.rules, layer_prefix=prefix, embeddings=embeddings),
        facts=facts,
        completed=(),
        refuse="",
    )


# ---------------------------------------------------------------------------------------------- as engines read them


# What ends with an error that a user sees, and so does no harm.
ALOUD = {("five_boundaries", "sglang-0.5.6"), ("gelu", "vllm-0.33.0")}


def expected(kind: str, head: Any, layout: str) -> Reading:
    """How the head computes, from the hand-written rules where there are some."""
    rules, config = KINDS[kind].rules or KINDS["plain"].rules, head.config
    assert rules is not None
    own = layout == "speculators" or config.own_embeddings
    return Reading(
        boundaries={rules.boundaries},
        residual_normed=rules.residual == "normed",
        norm_before_fc=rules.state_norm == "concat",
        fc_norm=rules.state_norm == "chunk",
        norm_output=rules.feedback == "post_norm",
        qk_norm=rules.qk_norm,
        layers=rules.layers,
        window=rules.window,
        own_embeddings=own,
        rope=rope_of(rules.rope, config),
        target_ids=tuple(head.to_target_ids(torch.arange(config.draft_vocab_size)).tolist()),
    )


def rope_of(rope: Rope, config: Eagle3Config) -> Any:
    rest = {name: value for name, value in config.rope_parameters.items() if name not in ("rope_type", "rope_theta")}
    return rope.base, rope.kind, tuple(sorted(rest.items()))


@pytest.mark.parametrize(("kind", "layout"), SAID)
def test_every_engine_reads_it_as_it_is(kind: str, layout: str, exported: Callable[[str, str], Path]) -> None:
    head, folder = tiny_head(KINDS[kind]), exported(kind, layout)
    for engine in READERS[layout][-1:] if layout in KINDS[kind].newer else READERS[layout]:
        if (kind, engine) in ALOUD:
            with pytest.raises(Refused):
                read(engine, folder, LAYERS)
        else:
            assert read(engine, folder, LAYERS) == expected(kind, head, layout), engine


@pytest.mark.parametrize("kind", [kind for kind in KINDS if {*BOTH} <= KINDS[kind].newer.keys()])
def test_vllm_reads_a_window_and_a_fed_back_norm_from_speculators_too(
    kind: str, exported: Callable[[str, str], Path]
) -> None:
    found = read("vllm-0.33.0", exported(kind, "speculators"), LAYERS)
    assert replace(found, own_embeddings=False) == read("vllm-0.33.0", exported(kind, "vllm"), LAYERS)


@pytest.mark.parametrize(("kind", "layout"), [(kind, name) for kind in KINDS for name in KINDS[kind].newer])
def test_what_older_versions_pass_over_needs_a_version(
    kind: str, layout: str, targets: dict[int, str], tmp_path: Path
) -> None:
    head, target, since = tiny_head(KINDS[kind]), target_of(kind, targets), KINDS[kind].newer[layout]
    for version in (None, "0.1.0"):
        with pytest.raises(ValueError, match=f"--engine-version {since}") as caught:
            export.export_head(head, tmp_path / "out", layout, target, version)
        assert_a_sentence(caught.value)
    assert not (tmp_path / "out").exists()
    export.export_head(head, tmp_path / "out", layout, target, since)
    for engine in READERS[layout][:-1]:  # and the older ones do misread it
        assert misread(engine, tmp_path / "out", expected(kind, head, layout))


@pytest.mark.parametrize(("kind", "layout"), REFUSED)
def test_what_a_layout_cannot_say_is_refused(kind: str, layout: str, targets: dict[int, str], tmp_path: Path) -> None:
    head, target = tiny_head(KINDS[kind]), target_of(kind, targets)
    with pytest.raises(ValueError, match="This head ") as caught:
        head.save_pretrained(tmp_path / "out", layout=layout, target=target, engine_version="999")
    assert_a_sentence(caught.value)
    # It says where else to go: to the layouts that can say all of this head.
    able = " or ".join(KINDS[kind].layouts)
    assert str(caught.value).endswith(f"; export it to {able}." if able else "; keep it in the layout of hf-eagle3.")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "layout"),
    # Heads that their own reader would take rightly and others wrongly, or whose fault is one of numbers only.
    [
        pair for pair in REFUSED
        if pair[1] != "speculators" and pair != ("boundaries_from_1", "vllm") and pair[0] not in ("dynamic",)
    ],
)  # fmt: skip
def test_no_refusal_is_idle(
    kind: str, layout: str, targets: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written all the same, some engine would misread it: so the check is needed, and the played engines can tell."""
    monkeypatch.setattr(conventions, "CONVENTIONS", ())
    monkeypatch.setattr(conventions, "_refuse_unknown", lambda case, name: None)
    head, target = tiny_head(KINDS[kind]), target_of(kind, targets)
    folder = export.export_head(head, tmp_path / "out", layout, target)
    assert any(misread(engine, folder, expected(kind, head, layout)) for engine in READERS[layout])


def misread(engine: str, folder: Path, right: Reading) -> bool:
    try:
        return read(engine, folder, LAYERS) != right
    except Refused:
        return True


def assert_a_sentence(error: Exception) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text.replace("--", "")


def test_the_played_engines_know_the_released_heads(tmp_path: Path) -> None:
    """The golden head of the official program, as it was released."""
    found = read("official", GOLDEN / "eagle3_llama_head", 8)
    assert (found.boundaries, found.passed_over, found.left_random) == ({(2, 4, 5)}, set(), set())
    assert len(PROJECTIONS) == 7


# ---------------------------------------------------------------------------------------------- unknown conventions


def test_a_field_that_the_table_does_not_know_is_refused(
    targets: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later kind of head would bring it."""
    head = tiny_head(KINDS["plain"])
    monkeypatch.setitem(Eagle3Config.__annotations__, "mask_token_id", "int | None")
    monkeypatch.setattr(Eagle3Config, "mask_token_id", None, raising=False)
    for layout in NEWEST:
        head.config.mask_token_id = None
        export.export_head(head, tmp_path / f"{layout}-plain", layout, targets[WIDTH])
        head.config.mask_token_id = 5
        with pytest.raises(ValueError, match=r"mask_token_id=5.*not known to say"):
            export.export_head(head, tmp_path / layout, layout, targets[WIDTH])
        assert not (tmp_path / layout).exists()


def test_a_tensor_that_the_table_does_not_know_is_refused(targets: dict[int, str], tmp_path: Path) -> None:
    head = tiny_head(KINDS["plain"])
    head.register_buffer("mask_hidden", torch.zeros(1, 1, 96))
    for layout in NEWEST:
        with pytest.raises(ValueError, match=r"mask_hidden, which .* not known to say"):
            export.export_head(head, tmp_path / layout, layout, targets[WIDTH])


def test_every_field_of_a_config_has_a_place_in_the_table() -> None:
    """Or defaults that leave it out: a new one has to be put there, or stay refused."""
    known = {name for each in conventions.CONVENTIONS for name in each.fields} | set(conventions.PLAIN_FIELDS)
    assert known <= set(Eagle3Config.__annotations__)


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


@pytest.mark.parametrize("layout", NEWEST)
def test_another_heads_target_is_refused(layout: str, targets: dict[int, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass the target that it was trained for"):
        export.export_head(tiny_head(KINDS["plain"]), tmp_path / "out", layout, targets[48])
    shallow = tiny_target(num_hidden_layers=7)
    with pytest.raises(ValueError, match="the target this head was trained for"):
        export.export_head(tiny_head(KINDS["plain"]), tmp_path / "out", layout, shallow)


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


@pytest.mark.parametrize("layout", NEWEST)
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
    for layout in NEWEST:
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
    assert conventions.table() in page.read_text(encoding="utf-8")


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
    assert {layout.name for layout in EAGLE3_LAYOUTS} == set(NEWEST) == set(conventions.LAYOUTS)
    assert layout_named("vllm", "eagle3").name == "vllm"


# ---------------------------------------------------------------------------------------------- the command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["export", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.mark.parametrize("layout", NEWEST)
def test_the_command_exports_and_says_how_to_serve(layout: str, targets: dict[int, str], tmp_path: Path) -> None:
    head, out, target = tiny_head(KINDS["plain"]), str(tmp_path / "out"), targets[WIDTH]
    head.save_pretrained(tmp_path / "head")
    shown = run(str(tmp_path / "head"), "--layout", layout, "--out", out, "--target", target)
    assert shown.exit_code == 0, shown.output
    assert f"{out}: {layout} layout, float32, 0.1 MiB" in shown.output
    assert export.serve_command(head, layout, out, target) in shown.output
    assert hf_eagle3.load_head(out).config.boundaries_for(LAYERS) == [2, 5, 7]


def test_the_command_turns_one_layout_into_another(exported: Callable[[str, str], Path], tmp_path: Path) -> None:
    shown = run(str(exported("norm_output", "speculators")), "--layout", "vllm", "--out", str(tmp_path / "out"))
    assert "--engine-version 0.33.0" in str(shown.exception)
    assert not (tmp_path / "out").exists()
    shown = run(
        str(exported("norm_output", "speculators")), "--layout", "vllm", "--out", str(tmp_path / "out"),
        "--engine-version", "0.33.0",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert replace(read("vllm-0.33.0", tmp_path / "out", LAYERS)) == read(
        "vllm-0.33.0", exported("norm_output", "speculators"), LAYERS
    )
