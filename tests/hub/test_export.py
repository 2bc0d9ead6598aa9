"""Heads in other programs' layouts: read back bit for bit, computing what the reference does, read as engines do."""

from __future__ import annotations

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
from helpers.export_heads import (
    BOTH,
    KINDS,
    LAYERS,
    LAYOUTS,
    STEPS,
    VOCABULARY,
    WIDTH,
    Kind,
    drafted,
    embeddings_of,
    in_own_memory,
    inputs,
    save_targets,
    target_of,
    tiny_head,
)
from helpers.reference_heads import reference_steps
from helpers.targets import GOLDEN
from safetensors.torch import load_file

import hf_eagle3
from hf_eagle3 import Eagle3Config
from hf_eagle3.hub import export, export_check
from hf_eagle3.hub.conventions_eagle3 import EAGLE3

# Who reads a layout: versions that need not be named when a head is exported, and the newest.
READERS = {
    "eagle": ("official",),
    "sglang": ("sglang-0.5.6", "sglang-0.5.23"),
    "vllm": ("vllm-0.33.0",),
    "speculators": ("vllm-0.33.0",),
}
PAIRS = [(kind, layout) for kind in KINDS for layout in LAYOUTS]
SAID = [pair for pair in PAIRS if pair[1] in KINDS[pair[0]].layouts]
REFUSED = [pair for pair in PAIRS if pair[1] not in KINDS[pair[0]].layouts]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    return save_targets(tmp_path_factory.mktemp("targets"))


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
    wanted = reference_steps(made, known, tokens, embeddings, embeddings, STEPS)
    for found, step in zip(drafted(hf_eagle3.load_head(folder).double(), embeddings), wanted, strict=True):
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
    monkeypatch.setattr(export_check, "TABLES", {"eagle3": replace(EAGLE3, conventions=())})
    monkeypatch.setattr(export_check, "_refuse_unknown", lambda case, name, table: None)
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
