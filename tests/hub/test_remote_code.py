"""The code in a repository, in processes of their own: `custom_generate=`, `trust_remote_code=True`, and without us.

A process each, because what matters is whether hf_eagle3 has been imported, or can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh_process import FreshProcesses
from helpers.hub_server import HubServer
from helpers.sentences import sentence
from helpers.targets import GOLDEN
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModel, PreTrainedModel

import hf_eagle3
from hf_eagle3.hub import code
from hf_eagle3.hub.custom_generate import generate_with, home_of
from hf_eagle3.hub.repository import lay_out
from hf_eagle3.release import INSTALL_COMMAND


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcesses]:
    home = tmp_path_factory.mktemp("fresh")
    with FreshProcesses(HubServer().environment(home)) as fresh:
        yield fresh


@pytest.fixture
def pushed(hub: HubServer, api: HfApi, golden_head: hf_eagle3.Eagle3DraftModel) -> str:
    """A name that transformers has to rewrite to make a module of it, at a commit that is not the newest."""
    commit = golden_head.push_to_hub("owner/1st-head.v1")
    hub.repository("owner/1st-head.v1").tags["released"] = hub.repository("owner/1st-head.v1").at(commit.oid)
    return "owner/1st-head.v1"


def test_custom_generate(fresh: FreshProcesses, hub: HubServer, pushed: str, tmp_path: Path, golden_head: Any) -> None:
    """A process that never heard of us decodes by the head of a repository, and of a folder, as it would without."""
    folder = lay_out(golden_head, tmp_path / "my.head")
    found = fresh.run(
        hub.url,
        tmp_path / "home",
        """
        target = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        ids = torch.arange(5, 21)[None]
        plain = target.generate(ids, **options)
        found["asks"] = refused(lambda: target.generate(ids, custom_generate=head, trust_remote_code=False, **options))
        assert "hf_eagle3" not in sys.modules
        way = {"custom_generate": head, "trust_remote_code": True, "return_dict_in_generate": True, **options}

        class Streamer:
            def __init__(self):
                self.seen, self.ended = [], False
            def put(self, ids):
                self.seen += ids.flatten().tolist()
            def end(self):
                self.ended = True

        streamer = Streamer()
        outs = [target.generate(ids, streamer=streamer, **way)]
        outs += [target.generate(input_ids=ids, attention_mask=torch.ones_like(ids), tree_depth=2, tree_top_k=2,
                                 num_assistant_tokens=4, **way)]
        outs += [target.generate(ids, **{**way, "revision": "released"})]
        outs += [target.generate(ids, **{**way, "custom_generate": folder}) for _ in range(2)]
        from huggingface_hub import constants
        from hf_eagle3.hub import custom_generate
        constants.HF_HUB_OFFLINE = True
        custom_generate._heads.clear()
        outs += [target.generate(ids, **way)]
        constants.HF_HUB_OFFLINE = False
        outs += [target.generate(ids, **{**way, "custom_generate": folder})]
        found["same"] = [torch.equal(out.sequences, plain) for out in outs]
        found["accepted"] = [sum(out.acceptance_lengths[0]) / len(out.acceptance_lengths[0]) for out in outs]
        found["streamed"] = streamer.seen == plain[0].tolist() and streamer.ended
        enough = lambda ids, scores, **_: torch.tensor([ids.shape[1] >= 20])
        stopped = target.generate(ids, **way, stopping_criteria=[enough])
        found["stopped"] = stopped.sequences.shape[1]
        found["heads"] = len(custom_generate._heads)
        from helpers.targets import letters
        tokenizer = letters(512)
        stop = {"stop_strings": [tokenizer.decode(plain[0, 19:21])], "tokenizer": tokenizer}
        early = target.generate(ids, **stop, **options)
        drafted = target.generate(ids, **stop, **way).sequences
        found["stop strings"] = [early.shape[1], torch.equal(drafted, early)]
        found["both"] = refused(lambda: target.generate(ids, **way, assistant_model=target))
        load = target.load_custom_generate
        found["outside"] = refused(lambda: load(folder, trust_remote_code=True)(target, input_ids=ids))
        by_hand = load(head, trust_remote_code=True)(target, input_ids=ids, **options)
        found["by hand"] = torch.equal(by_hand, plain)
        """,
        where=str(GOLDEN / "llama_target"),
        head=pushed,
        folder=str(folder),
    )
    assert "trust_remote_code=True" in found["asks"]
    assert found["same"] == [True] * 7
    assert all(accepted > 1.2 for accepted in found["accepted"]), found["accepted"]
    assert found["streamed"]
    assert found["stopped"] == 20
    assert found["stop strings"] == [21, True]
    assert found["heads"] == 2  # of the repository and of the folder
    assert found["both"].startswith("ValueError: Got both `assistant_model` and the `custom_generate` of a head")
    assert "called without `generate`" in found["outside"]
    assert found["by hand"]
    weights = [one for one in hub.requests if one.kind == "object" and one.method == "GET"]
    assert len(weights) == 1
    print("acceptance lengths, bonus included:", found["accepted"])


def test_custom_generate_of_an_old_commit_and_from_many_threads(
    fresh: FreshProcesses, hub: HubServer, api: HfApi, pushed: str, tmp_path: Path, golden_head: Any
) -> None:
    """Weights are those of the code's own commit, whatever the branch holds by now, and are loaded once; a token that
    `generate` is given is used for them too."""
    broken = hub.repository(pushed)
    broken.private = True
    broken.commit({"model.safetensors": hub.entry("model.safetensors", b"not tensors")}, "broken")
    found = fresh.run(
        hub.url,
        tmp_path / "home",
        """
        target = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        ids = torch.arange(5, 21)[None]
        plain = target.generate(ids, **options)
        way = {"custom_generate": head, "trust_remote_code": True, **options}
        found["nobody"] = refused(lambda: target.generate(ids, **way))
        way["token"] = "hf_owner"
        same = []
        def decode():
            same.append(torch.equal(target.generate(ids, revision="released", **way), plain))
        threads = [threading.Thread(target=decode) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        found["same"] = same
        found["broken"] = refused(lambda: target.generate(ids, **way))
        half = target.to(torch.bfloat16)
        half.generate(ids, revision="released", **way)
        from hf_eagle3.hub import custom_generate
        found["dtypes"] = sorted(str(one.dtype) for one in custom_generate._heads.values())
        """,
        where=str(GOLDEN / "llama_target"),
        head=pushed,
    )
    assert found["same"] == [True] * 4
    assert "not a local folder or a valid repository name" in found["nobody"]  # transformers' own words
    assert "model.safetensors cannot be read" in found["broken"]
    assert found["dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert sum(one.kind == "object" and one.method == "GET" for one in hub.requests) == 2  # the head, and no tensors


def test_trust_remote_code(fresh: FreshProcesses, hub: HubServer, pushed: str, tmp_path: Path) -> None:
    """A process that never heard of us has the head by `AutoModel`; what it saves carries no copies of our code."""
    found = fresh.run(
        hub.url,
        tmp_path / "home",
        """
        import os
        found["asks"] = refused(lambda: AutoModel.from_pretrained(head, trust_remote_code=False))
        assert "hf_eagle3" not in sys.modules
        config = AutoConfig.from_pretrained(head, trust_remote_code=True)
        loaded = AutoModel.from_pretrained(head, trust_remote_code=True)
        found["classes"] = [f"{type(one).__module__}.{type(one).__name__}" for one in (config, loaded)]
        loaded.save_pretrained(folder)
        found["saved"] = sorted(os.listdir(folder))
        found["map"] = "auto_map" in open(os.path.join(folder, "config.json")).read()
        again = AutoModel.from_pretrained(folder)
        found["same"] = torch.equal(again.fc.weight, loaded.fc.weight)
        """,
        head=pushed,
        folder=str(tmp_path / "saved"),
    )
    assert "trust_remote_code=True" in found["asks"]
    assert found["classes"] == [
        "hf_eagle3.configuration_eagle3.Eagle3Config",
        "hf_eagle3.modeling_eagle3.Eagle3DraftModel",
    ]
    assert found["saved"] == ["config.json", "generation_config.json", "model.safetensors"]
    assert not found["map"]
    assert found["same"]


def test_without_hf_eagle3_one_sentence_says_how_to_install_it(
    fresh: FreshProcesses, hub: HubServer, pushed: str, tmp_path: Path
) -> None:
    """Neither importable nor installed; importable as far as pip knows; and too old to have what the code asks for."""
    found = fresh.run(
        hub.url,
        tmp_path / "home",
        """
        import importlib.metadata, types
        there = importlib.metadata.version
        target = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        way = {"custom_generate": head, "trust_remote_code": True, "max_new_tokens": 4}
        ids = torch.arange(5, 21)[None]

        def missing(name):
            if name == "hf-eagle3":
                raise importlib.metadata.PackageNotFoundError(name)
            return there(name)

        def present(name):
            return "0.1.0.dev0" if name == "hf-eagle3" else there(name)

        sys.modules["hf_eagle3"] = None  # what an import of something that is not there meets
        importlib.metadata.version = missing
        found["not installed"] = refused(lambda: target.generate(ids, **way))
        found["model"] = refused(lambda: AutoModel.from_pretrained(head, trust_remote_code=True))
        importlib.metadata.version = present
        found["not importable"] = refused(lambda: target.generate(ids, **way))
        sys.modules["hf_eagle3"] = types.ModuleType("hf_eagle3")
        sys.modules["hf_eagle3"].__path__ = []
        sys.modules["hf_eagle3.hub"] = None  # an editable installation finds parts of a package without its path
        found["too old"] = refused(lambda: target.generate(ids, **way))
        """,
        where=str(GOLDEN / "llama_target"),
        head=pushed,
    )
    for said in found.values():
        assert said.startswith("ImportError: ")
        assert INSTALL_COMMAND in said
    for name in ("model", "not importable", "too old"):
        assert "\n" not in found[name]


def test_a_process_that_has_us_runs_no_code_of_a_repository(hub: HubServer, api: HfApi, pushed: str) -> None:
    """With and without `trust_remote_code`."""
    trap = hub.entry(f"{code.MODULE}.py", b"raise SystemExit('remote code was run')\n")
    hub.repository(pushed).commit({f"{code.MODULE}.py": trap}, "trap")
    for options in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        assert isinstance(AutoModel.from_pretrained(pushed, **options), hf_eagle3.Eagle3DraftModel)
        assert isinstance(AutoConfig.from_pretrained(pushed, **options), hf_eagle3.Eagle3Config)
    assert not any(f"{code.MODULE}.py" in one.path for one in hub.requests)


# ---------------------------------------------------------------------- where a head's code came from

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("module", "asked", "found"),
    [
        ("owner/_1st_hyphen_head_dot_v1", None, "owner/1st-head.v1"),
        ("owner/plain_name", None, "owner/plain_name"),
        ("owner/a_dot_b", "owner/a_dot_b", "owner/a_dot_b"),  # only who asked knows which it is
        ("head", None, "head"),
    ],
)
def test_the_repository_of_a_module(module: str, asked: str | None, found: str) -> None:
    path = f"/cache/modules/transformers_modules/{module}/{COMMIT}/custom_generate/generate.py"
    assert home_of(path, asked) == (found, COMMIT)


def test_the_folder_of_a_module(tmp_path: Path) -> None:
    path = "/cache/modules/transformers_modules/head/0123456789abcdef/custom_generate/generate.py"
    assert home_of(path, str(tmp_path)) == (str(tmp_path), None)
    for asked in (None, "owner/head"):
        said = sentence(ValueError, lambda asked=asked: home_of(path, asked))
        assert "The code of a head's folder head was called without `generate`" in said


def test_a_folder_that_changes_is_read_again(
    golden_head: Any, golden_target: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_eagle3.hub import custom_generate

    folder = lay_out(golden_head, tmp_path / "head")
    monkeypatch.setattr(custom_generate, "_heads", type(custom_generate._heads)())
    monkeypatch.setattr(custom_generate, "asked_for", lambda: str(folder))
    path = "/modules/transformers_modules/head/0123456789abcdef/custom_generate/generate.py"
    options = {"input_ids": torch.arange(5, 21)[None], "max_new_tokens": 4, "do_sample": False}
    for _ in range(2):
        generate_with(path, golden_target, **options)
    assert len(custom_generate._heads) == 1
    lay_out(golden_head, folder)
    generate_with(path, golden_target, **options)
    assert len(custom_generate._heads) == 2
