"""A tree that travels packed gives each node the logits that its path gives as a plain text."""

from __future__ import annotations

import pytest
import torch
from helpers.targets import prompt, tiny_target
from helpers.trees import left_padded, path_logits, random_tree, tree_logits
from transformers import PreTrainedModel

from hf_eagle3 import tree_kernel
from hf_eagle3.attention import EAGLE3_TREE, eagle3_tree, has_holes, is_packed_tree, pack_tree, tree_mask

WINDOW = 8
# Every family in its own plain implementation, and how its windows are asked for.
PLAIN = {
    "llama": ("sdpa", {}),
    "qwen3": ("sdpa", {}),
    "mistral": ("sdpa", {"sliding_window": WINDOW}),
    "gemma3": ("sdpa", {"sliding_window": WINDOW}),
    "gemma2": ("eager", {"sliding_window": WINDOW}),
    "gpt_oss": ("eager", {"sliding_window": WINDOW}),
}


def twins(family: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target with `eagle3_tree`, and the same one as it would be without us."""
    attention, fields = PLAIN[family]
    target, plain = (tiny_target(family, attention=name, **fields) for name in (EAGLE3_TREE, attention))
    for one in (target, plain):
        one.to(dtype).set_experts_implementation("eager")  # the default knows no float64
    return target, plain


def assert_close(logits: torch.Tensor, plain: torch.Tensor) -> None:
    """To rounding, of which seven loud layers make several times their dtype's own."""
    tolerance = {torch.float32: 5e-5, torch.float64: 1e-12}[plain.dtype]
    scale = float(plain.abs().max())
    torch.testing.assert_close(logits / scale, plain / scale, rtol=0, atol=tolerance)


# float64 leaves no room for a small mistake. Gemma-2's eager attention has its softmax in float32.
DTYPES = [(family, torch.float32) for family in PLAIN] + [
    (family, torch.float64) for family in PLAIN if family != "gemma2"
]


@pytest.fixture(autouse=True)
def any_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels only the reference takes float64."""
    if "float64" in request.node.name:
        monkeypatch.setattr(tree_kernel, "_kernel", None)  # put back afterwards
        tree_kernel.use_tree_kernel("reference")


@pytest.mark.parametrize(("family", "dtype"), DTYPES, ids=str)
@pytest.mark.parametrize(("length", "padding", "nodes"), [(3, 0, 6), (5, 2, 12), (20, 0, 12), (20, 9, 33), (2, 20, 9)])
def test_every_node_is_the_end_of_a_plain_text(
    family: str, length: int, padding: int, nodes: int, dtype: torch.dtype
) -> None:
    """Within the window and far beyond it, padding within the window and beyond, one word and two."""
    target, plain = twins(family, dtype)
    ids, mask = left_padded(prompt(length), padding)
    tree = random_tree(nodes, seed=length)
    assert_close(tree_logits(target, ids, mask, tree), path_logits(plain, ids, mask, tree))


@pytest.mark.parametrize(("family", "dtype"), DTYPES, ids=str)
def test_rows_of_a_batch_have_trees_and_padding_of_their_own(family: str, dtype: torch.dtype) -> None:
    target, plain = twins(family, dtype)
    first, second = left_padded(prompt(14), 0), left_padded(prompt(9, seed=1), 5)
    ids, mask = (torch.cat(both) for both in zip(first, second, strict=True))
    tree = random_tree(10, batch=2)
    assert_close(tree_logits(target, ids, mask, tree), path_logits(plain, ids, mask, tree))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_prompt_with_holes_travels_as_a_dense_mask(family: str) -> None:
    """Real, padding, real: within a window sdpa's own mask says it, and `eagle3_tree` is then an ordinary call."""
    attention, _ = PLAIN[family]
    fields = {} if family == "llama" else {"sliding_window": 64}
    target, plain = (tiny_target(family, attention=name, **fields) for name in (EAGLE3_TREE, attention))
    ids, mask = prompt(12), torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1]])
    tree = random_tree(9)
    assert_close(tree_logits(target, ids, mask, tree), path_logits(plain, ids, mask, tree))


# ---------------------------------------------------------------------- the format


def test_columns() -> None:
    tree = random_tree(40, batch=2)
    committed = torch.arange(7)[None] >= torch.tensor([[0], [3]])
    packed = pack_tree(tree, committed)
    assert packed.dtype == torch.int32
    assert packed.shape == (2, 1, 40, 2 + 3)
    bits = (packed[:, 0, :, :2, None] >> torch.arange(32, dtype=torch.int32)) & 1
    assert torch.equal(bits.flatten(-2)[..., :40].bool(), tree.ancestors)
    assert torch.equal(packed[:, 0, :, 2], tree.depths.int())
    assert packed[:, 0, :, 3].unique(dim=1).flatten().tolist() == [0, 3]
    assert packed[:, 0, :, 4].unique().tolist() == [7]


def test_only_an_int32_mask_of_four_dimensions_is_a_tree() -> None:
    tree, committed = random_tree(5), torch.ones(1, 4, dtype=torch.bool)
    masks = {name: tree_mask(tree, committed, name, torch.float32) for name in ("sdpa", "eager", EAGLE3_TREE)}
    assert {name: is_packed_tree(mask) for name, mask in masks.items()} == {
        "sdpa": False,
        "eager": False,
        EAGLE3_TREE: True,
    }
    assert not is_packed_tree(None)
    assert not is_packed_tree(torch.ones(1, 4, dtype=torch.int32))
    assert torch.equal(tree_mask(tree, committed, EAGLE3_TREE, torch.float32, holes=True), masks["sdpa"])


@pytest.mark.parametrize(
    ("mask", "holes"), [([1, 1, 1], False), ([0, 0, 1], False), ([0, 1, 0, 1], True), ([1, 0], True), ([0, 0], False)]
)
def test_holes(mask: list[int], holes: bool) -> None:
    assert has_holes(torch.tensor([[1] * len(mask), mask])) is holes


# ---------------------------------------------------------------------- what a tree cannot be asked for


def attend(mask: torch.Tensor, nodes: int = 5, length: int = 9, **kwargs: object) -> torch.Tensor:
    states = torch.randn(1, 2, length, 8)
    return eagle3_tree(torch.nn.Module(), states[:, :, :nodes], states, states, mask, **kwargs)[0]


def test_a_mask_of_another_tree() -> None:
    packed = pack_tree(random_tree(5), torch.ones(1, 4, dtype=torch.bool))
    assert attend(packed).shape == (1, 5, 2, 8)
    for mask in (packed[:, :, :4], packed[..., :3], torch.ones(1, 1, 5, 9, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"packed tree of shape .* for 5 query rows") as error:
            attend(mask)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"output_attentions": True}, "output_attentions"),
        ({"position_bias": torch.zeros(1, 2, 5, 9)}, "position_bias"),
    ],
)
def test_what_the_kernel_does_not_do(asked: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"without {name}, which this target asks for") as error:
        attend(pack_tree(random_tree(5), torch.ones(1, 4, dtype=torch.bool)), **asked)
    assert "\n" not in str(error.value)


def test_what_is_passed_but_switched_off() -> None:
    packed = pack_tree(random_tree(5), torch.ones(1, 4, dtype=torch.bool))
    torch.manual_seed(0)
    plain = attend(packed)
    torch.manual_seed(0)
    off = {"dropout": 0.0, "output_attentions": False, "position_bias": None, "softcap": None, "s_aux": None}
    assert torch.equal(attend(packed, **off, sliding_window=None), plain)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_compiled_as_one_graph(family: str) -> None:
    """Words in the mask are ordinary tensor work: nothing of a tree's forward, nor of an ordinary one, breaks out."""
    fields = PLAIN[family][1]
    target = tiny_target(family, attention=EAGLE3_TREE, num_hidden_layers=2, layer_types=None, **fields)
    layer = next(module for module in target.modules() if hasattr(module, "num_key_value_groups"))
    states = [torch.randn(1, heads, 9, 8) for heads in (4, 2, 2)]
    packed = pack_tree(random_tree(9), torch.ones(1, 0, dtype=torch.bool))
    more = {"s_aux": torch.randn(4)} if family == "gpt_oss" else {}
    compiled = torch.compile(eagle3_tree, fullgraph=True, backend="eager")
    for mask in (packed, None):
        plain = eagle3_tree(layer, *states, mask, scaling=0.3, **more)[0]
        torch.testing.assert_close(compiled(layer, *states, mask, scaling=0.3, **more)[0], plain)
