"""A head with its matrices as a CPU multiplies them: the twin computes what the head does, and follows it."""

from __future__ import annotations

import copy
import gc
import platform
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, EagleConfig, EagleDraftModel
from hf_eagle3 import prepacked as prepacking
from hf_eagle3.native_products import has_bf16
from hf_eagle3.prepacked import prepacked

TARGET = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, eos_token_id=None
)
DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not has_bf16(), reason="this CPU emulates bfloat16")),
]
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"),
    reason="heads are prepacked on x86 processors, by oneDNN",
)


def a_head(dtype: torch.dtype = torch.float32, **fields: object) -> Eagle3DraftModel:
    torch.manual_seed(0)
    config = Eagle3Config.from_target(TARGET, **{"draft_vocab_size": 40, **fields})
    return Eagle3DraftModel(config).to(dtype).eval()


@torch.no_grad()
def scored(head: nn.Module, rows: int = 3) -> torch.Tensor:
    dtype = next(head.parameters()).dtype
    states = torch.randn(2, rows, 3 * 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    fused = head.fuse(states)
    return head(fused, inputs_embeds=fused.flip(1)).logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fields", [{}, {"num_hidden_layers": 2}, {"qkv_bias": True}, {"qk_norm": True}, {"norm_output": True}]
)
def test_a_twin_computes_what_its_head_does_for_any_number_of_rows(dtype: torch.dtype, fields: dict) -> None:
    head = a_head(dtype, **fields)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    twin = prepacked(head)
    assert twin is not head
    assert any(isinstance(vars(part).get("forward"), prepacking._Product) for part in twin.modules())
    for rows in (1, 3, 4, 40):
        torch.testing.assert_close(scored(twin, rows), scored(head, rows))


def test_a_twin_has_the_head_s_tensors_and_config_and_the_head_is_left_alone() -> None:
    head = a_head()
    before = {name: vars(part).keys() for name, part in head.named_modules()}
    twin = prepacked(head)
    assert type(twin) is type(head)
    assert twin.config is head.config
    assert [id(tensor) for tensor in twin.state_dict(keep_vars=True).values()] == [
        id(tensor) for tensor in head.state_dict(keep_vars=True).values()
    ]
    assert {name: vars(part).keys() for name, part in head.named_modules()} == before
    assert not any("forward" in vars(part) for part in head.modules())


def test_a_twin_is_made_once_and_goes_with_its_head() -> None:
    head = a_head()
    assert prepacked(head) is prepacked(head)
    gone = weakref.ref(head)
    del head
    gc.collect()
    assert gone() is None


def _step(head: Eagle3DraftModel) -> None:
    with torch.no_grad():
        head.lm_head.weight.add_(1.0)


def _replace_weight(head: Eagle3DraftModel) -> None:
    head.layers[0].mlp.up_proj.weight = nn.Parameter(torch.randn_like(head.layers[0].mlp.up_proj.weight))


def _replace_data(head: Eagle3DraftModel) -> None:
    head.fc.weight.data = torch.randn_like(head.fc.weight)


def _replace_norm(head: Eagle3DraftModel) -> None:
    head.norm = copy.deepcopy(head.norm)
    with torch.no_grad():
        head.norm.weight.mul_(3.0)


def _load(head: Eagle3DraftModel) -> None:
    torch.manual_seed(5)
    head.load_state_dict(Eagle3DraftModel(head.config).state_dict())


@pytest.mark.parametrize("change", [_step, _replace_weight, _replace_data, _replace_norm, _load])
def test_a_head_that_has_changed_since_gets_another_twin(change: Callable[[Eagle3DraftModel], None]) -> None:
    head = a_head()
    before = scored(prepacked(head))
    change(head)
    torch.testing.assert_close(scored(prepacked(head)), scored(head))
    assert not torch.allclose(scored(prepacked(head)), before)


def test_training_mode_is_the_head_s() -> None:
    head = a_head()
    assert not prepacked(head).training
    assert prepacked(head.train()).training


class _Subclass(Eagle3DraftModel):
    """Somebody's own head, whose state a twin could miss."""


def test_a_head_comes_back_as_it_is_where_a_twin_could_miss_something(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _Subclass(a_head().config).eval()
    assert prepacked(theirs) is theirs
    head = a_head()
    hook = head.layers[0].register_forward_hook(lambda *_: None)
    assert prepacked(head) is head
    hook.remove()
    assert prepacked(head) is not head
    head.lm_head.forward = lambda states: states  # type: ignore[method-assign]
    assert prepacked(head) is head


def test_a_head_comes_back_as_it_is_where_onednn_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in (a_head(torch.float64), a_head().to("meta"), a_head(torch.float16)):
        assert prepacked(odd) is odd
    with torch.inference_mode():
        made_there = a_head()
    assert prepacked(made_there) is made_there
    head = a_head()
    with torch.backends.mkldnn.flags(enabled=False):
        assert prepacked(head) is head
    monkeypatch.setattr(prepacking.platform, "machine", lambda: "aarch64")
    assert prepacked(head) is head


def test_an_emulated_dtype_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    half, single = a_head(torch.bfloat16), a_head()
    assert prepacked(half) is half
    assert prepacked(single) is not single


@pytest.mark.parametrize("kind", ["eagle3", "eagle1"])
def test_generate_drafts_with_the_twin(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    target = LlamaForCausalLM(TARGET).eval()
    head = a_head() if kind == "eagle3" else EagleDraftModel(EagleConfig.from_target(TARGET)).eval()
    ids = torch.randint(0, 96, (1, 9))
    kept: list[int] = []
    product = prepacking._Product.__call__
    monkeypatch.setattr(prepacking._Product, "__call__", lambda self, states: kept.append(1) or product(self, states))
    drafted = target.generate(ids, assistant_model=head, max_new_tokens=24, do_sample=False)
    assert len(kept) > 20
    assert torch.equal(drafted, target.generate(ids, max_new_tokens=24, do_sample=False))
