"""A head with its matrices as a CPU multiplies them: the twin computes what the head does, and shares the rest."""

from __future__ import annotations

import copy
import gc
import platform
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, EagleConfig, EagleDraftModel
from hf_eagle3 import prepacked as prepacking
from hf_eagle3.native_products import multiplies_natively
from hf_eagle3.prepacked import prepacked

TARGET = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, eos_token_id=None
)
EMULATED = not multiplies_natively(torch.bfloat16)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(EMULATED, reason="emulated here"))]
LATENT = {"kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"),
    reason="heads are prepacked on x86 processors, by oneDNN",
)


@pytest.fixture(autouse=True)
def _as_in_generate() -> Iterator[None]:
    with torch.no_grad():
        yield


def a_head(dtype: torch.dtype = torch.float32, **fields: object) -> Eagle3DraftModel:
    torch.manual_seed(0)
    config = Eagle3Config.from_target(TARGET, **{"draft_vocab_size": 40, **fields})
    head = Eagle3DraftModel(config).to(dtype).eval()
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return head


def scored(head: nn.Module, rows: int = 3) -> torch.Tensor:
    dtype = next(head.parameters()).dtype
    states = torch.randn(2, rows, 3 * 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    fused = head.fuse(states)
    return head(fused, inputs_embeds=fused.flip(1)).logits


def products(module: nn.Module) -> int:
    return sum(isinstance(vars(part).get("forward"), prepacking._Product) for part in module.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"num_hidden_layers": 2}, {"qkv_bias": True}, {"qk_norm": True}, {"norm_output": True}, LATENT],
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_a_twin_computes_what_its_head_does_for_any_number_of_rows(dtype: torch.dtype, fields: dict) -> None:
    head = a_head(dtype, **fields)
    twin = prepacked(head)
    assert products(twin) == sum(type(part) is nn.Linear for part in head.modules()) > 7
    for rows in (1, 3, 4, 40, 300):
        torch.testing.assert_close(scored(twin, rows), scored(head, rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_at_the_size_of_a_real_head(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(576, 16384, bias=False, dtype=dtype)
    for rows in (1, 4, 10, 60):
        states = torch.randn(1, rows, 576, dtype=dtype)
        torch.testing.assert_close(prepacking._Product(linear)(states), linear(states), rtol=1e-2, atol=1e-4)


def test_a_twin_shares_all_but_the_products_and_the_head_is_left_alone() -> None:
    head = a_head()
    before = {name: dict(vars(part)) for name, part in head.named_modules()}
    twin = prepacked(head)
    assert twin is not head
    assert type(twin) is type(head)
    assert twin.config is head.config
    assert twin.norm is head.norm
    assert twin.rotary_emb is head.rotary_emb  # its frequencies may change as it goes
    theirs, ours = (module.state_dict(keep_vars=True) for module in (twin, head))
    assert {name: id(tensor) for name, tensor in theirs.items()} == {name: id(tensor) for name, tensor in ours.items()}
    assert {name: dict(vars(part)) for name, part in head.named_modules()} == before
    gone = weakref.ref(twin)
    del twin
    gc.collect()
    assert gone() is None


def _step(head: Any) -> None:
    head.lm_head.weight.add_(1.0)


def _through_data(head: Any) -> None:
    head.lm_head.weight.data.mul_(-2.0)


def _turned(head: Any) -> None:
    weight = head.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.t()


def _new_bias(head: Any) -> None:
    head.layers[0].self_attn.q_proj.bias = nn.Parameter(torch.ones(32))


def _new_norm(head: Any) -> None:
    head.norm = copy.deepcopy(head.norm)
    head.norm.weight.mul_(3.0)


def _loaded(head: Any) -> None:
    torch.manual_seed(5)
    head.load_state_dict(Eagle3DraftModel(head.config).state_dict())


@pytest.mark.parametrize("change", [_step, _through_data, _turned, _new_bias, _new_norm, _loaded])
def test_the_next_call_sees_whatever_was_done_to_the_head(change: Callable[[Any], None]) -> None:
    head = a_head(qkv_bias=True)
    before = scored(prepacked(head))
    change(head)
    torch.testing.assert_close(scored(prepacked(head)), scored(head))
    assert not torch.allclose(scored(prepacked(head)), before)


def test_a_lora_on_a_head_counts_and_goes_when_it_is_switched_off() -> None:
    peft = pytest.importorskip("peft")
    head = a_head()
    bare = scored(head)
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4), head)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    twin = prepacked(adapted)
    assert products(twin) > 7
    torch.testing.assert_close(scored(twin), scored(adapted))
    assert not torch.allclose(scored(twin), bare)
    for part in adapted.modules():
        if isinstance(part, peft.tuners.lora.LoraLayer):
            part.enable_adapters(False)
    torch.testing.assert_close(scored(prepacked(adapted)), bare)


def _hooked(head: Any) -> None:
    head.layers[0].register_forward_hook(lambda *_: None)


def _patched(head: Any) -> None:
    head.lm_head.forward = lambda states: states


def _compiled(head: Any) -> None:
    head.layers[0].compile()


class _Quantised(torch.Tensor):
    """Somebody's class of tensors."""


def _of_another_class(head: Any) -> None:
    head.fc.weight = nn.Parameter(head.fc.weight.data.as_subclass(_Quantised))


@pytest.mark.parametrize("change", [_hooked, _patched, _compiled, _of_another_class])
def test_a_head_comes_back_as_it_is_where_a_twin_would_go_past_something(change: Callable[[Any], None]) -> None:
    head = a_head()
    assert prepacked(head) is not head
    change(head)
    assert prepacked(head) is head


def test_a_matrix_that_is_computed_stays_so() -> None:
    head = a_head()
    head.layers[0].mlp.up_proj = parametrizations.weight_norm(head.layers[0].mlp.up_proj)
    torch.testing.assert_close(scored(prepacked(head)), scored(head))


def test_a_head_comes_back_as_it_is_where_autograd_or_autocast_are_to_see_it() -> None:
    head = a_head()
    with torch.enable_grad():
        assert prepacked(head) is head
    with torch.autocast("cpu", torch.bfloat16):
        assert prepacked(head) is head


def test_a_head_comes_back_as_it_is_where_onednn_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in (a_head(torch.float64), a_head().to("meta"), a_head(torch.float16)):
        assert prepacked(odd) is odd
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


@pytest.mark.parametrize("kind", ["eagle3", "parallel", "eagle1"])
def test_generate_drafts_with_a_twin_what_it_would_with_the_head(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    target = LlamaForCausalLM(TARGET).eval()
    if kind == "eagle1":
        head: Any = EagleDraftModel(EagleConfig.from_target(TARGET)).eval()
    else:
        parallel = {"parallel_drafting": True, "mask_token_id": 3} if kind == "parallel" else {}
        head = a_head(draft_vocab_size=96, **parallel)
    ids = torch.randint(0, 96, (1, 9))
    seen: list[int] = []
    product = prepacking._Product.__call__
    monkeypatch.setattr(prepacking._Product, "__call__", lambda self, states: seen.append(1) or product(self, states))
    # So wide that it holds what even an untrained head's target says.
    tree = {"num_assistant_tokens": 70, "tree_depth": 2, "tree_top_k": 60}
    options = {"max_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True, **tree}
    drafted = target.generate(ids, assistant_model=head, **options)
    assert len(seen) > 20
    seen.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        as_it_is = target.generate(ids, assistant_model=head, **options)
    assert not seen
    assert torch.equal(drafted.sequences, as_it_is.sequences)
    assert torch.equal(drafted.sequences, target.generate(ids, max_new_tokens=40, do_sample=False))
    assert drafted.acceptance_lengths == as_it_is.acceptance_lengths
    assert max(drafted.acceptance_lengths[0]) > 1
