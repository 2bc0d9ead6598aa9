"""What cannot be computed is refused in one sentence, before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import trees
from cases import Case, batch_of
from subject import pack_ancestors, tree_attention, tree_attention_reference

_CASE = Case(batch_of(trees.bushy(33), trees.chain(33)), prefix=40, group=2, spare=5)


def _q(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return _changed("q", change)


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: {name: change(arguments[name])}


def _given(**arguments: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda _: arguments


def _all_of_dtype(dtype: torch.dtype) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arguments: {name: arguments[name].to(dtype) for name in "qkv"}


def _wide(_: dict[str, Any]) -> dict[str, Any]:
    inputs = Case(_CASE.parents, dim=264).inputs()
    return {"q": inputs.q, "k": inputs.k, "v": inputs.v}


def _wide_values(_: dict[str, Any]) -> dict[str, Any]:
    return {"v": Case(_CASE.parents, value_dim=264).inputs().v}


_BAD = {
    "q that is no tensor": _q(lambda q: q.numpy()),
    "words in a list": _changed("ancestors", torch.Tensor.tolist),
    "padding in a list": _given(pad=[0, 0]),
    "depths in a list": _given(depth=[[0] * 33] * 2, window=4),
    "sinks in a list": _given(sinks=[0.0] * 4),
    "a window that is no integer": _given(window=3.5),
    "a window that is a word": _given(window="3"),
    "a softcap that is a word": _given(softcap="30"),
    "no sequence": lambda given: {name: given[name][:0] for name in ("q", "k", "v", "ancestors")},
    "q of rank 3": _q(lambda q: q[0]),
    "k of rank 3": _changed("k", lambda k: k[0]),
    "v of rank 5": _changed("v", lambda v: v[None]),
    "q of another dtype": _q(torch.Tensor.half),
    "v of another dtype": _changed("v", torch.Tensor.bfloat16),
    "float64": _all_of_dtype(torch.float64),
    "integers": _all_of_dtype(torch.int32),
    "query heads no multiple": _q(lambda q: q[:, :3]),
    "fewer query heads than key heads": _q(lambda q: q[:, :1]),
    "v with other heads": _changed("v", lambda v: v[:, :1]),
    "v of another length": _changed("v", lambda v: v[:, :, :-1]),
    "k of another batch": _changed("k", lambda k: k[:1]),
    "k and v of another batch": lambda given: {"k": given["k"][:1], "v": given["v"][:1]},
    "q and k of unlike head dims": _changed("k", lambda k: k[..., :32]),
    "head dim above 256": _wide,
    "value dim above 256": _wide_values,
    "keys too short for the tree": _given(prefix_len=46),
    "negative prefix": _given(prefix_len=-1),
    "prefix that is no integer": _given(prefix_len=40.0),
    "prefix tensor of two": _given(prefix_len=torch.tensor([40, 40])),
    "prefix tensor of floats": _given(prefix_len=torch.tensor([40.0])),
    "words of int64": _changed("ancestors", torch.Tensor.long),
    "words of bool": _changed("ancestors", torch.Tensor.bool),
    "words for fewer nodes": _changed("ancestors", lambda words: words[:, :-1]),
    "too few words": _changed("ancestors", lambda words: words[..., :1]),
    "too many words": _changed("ancestors", lambda words: torch.cat([words, words], dim=-1)),
    "words of rank 2": _changed("ancestors", lambda words: words[0]),
    "words of another batch": _changed("ancestors", lambda words: words[:1]),
    "a dense mask for words": _given(ancestors=torch.zeros(2, 1, 33, 78, dtype=torch.int32)),
    "padding of another batch": _given(pad=torch.zeros(3, dtype=torch.int64)),
    "padding of rank 2": _given(pad=torch.zeros(2, 1, dtype=torch.int64)),
    "padding of floats": _given(pad=torch.zeros(2)),
    "depths of another shape": _given(depth=torch.zeros(2, 32, dtype=torch.int64), window=4),
    "depths of floats": _given(depth=torch.zeros(2, 33), window=4),
    "window of nothing": _given(window=0),
    "negative window": _given(window=-1),
    "softcap of nothing": _given(softcap=0.0),
    "negative softcap": _given(softcap=-1.0),
    "sinks of key heads": _given(sinks=torch.zeros(2)),
    "sinks of rank 2": _given(sinks=torch.zeros(1, 4)),
    "k on another device": _changed("k", lambda k: k.to("meta")),
    "v on another device": _changed("v", lambda v: v.to("meta")),
    "words on another device": _changed("ancestors", lambda words: words.to("meta")),
    "padding on another device": _given(pad=torch.zeros(2, dtype=torch.int64, device="meta")),
    "depths on another device": _given(depth=torch.zeros(2, 33, dtype=torch.int64, device="meta")),
    "prefix length on another device": _given(prefix_len=torch.zeros(1, dtype=torch.int64, device="meta")),
    "sinks on another device": _given(sinks=torch.zeros(4, device="meta")),
}


@pytest.mark.parametrize("change", _BAD.values(), ids=_BAD.keys())
def test_bad_input_is_refused_in_one_sentence(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    inputs = _CASE.inputs()
    arguments = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "ancestors": inputs.ancestors, **inputs.options}
    tree_attention(**arguments)
    _refused(lambda: tree_attention(**arguments | change(arguments)))


@pytest.mark.parametrize("prefix", [46, -1])
@pytest.mark.parametrize("attend", [tree_attention, tree_attention_reference])
def test_on_a_cpu_a_prefix_tensor_is_checked_too(attend: Callable[..., object], prefix: int) -> None:
    """There its value is read anyway; a device would have to be waited for."""
    inputs = _CASE.inputs()
    options = inputs.options | {"prefix_len": torch.tensor(prefix)}
    _refused(lambda: attend(inputs.q, inputs.k, inputs.v, inputs.ancestors, **options))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_last_dimension_with_gaps_is_refused_or_read_rightly(name: str) -> None:
    """Refused, because a copy made in silence would cost what the kernel saves; read rightly would do as well."""
    inputs = _CASE.inputs()
    given = getattr(inputs, name)
    gaps = torch.full((*given.shape[:-1], 2 * given.shape[-1]), torch.nan)[..., ::2]
    setattr(inputs, name, gaps.copy_(given))
    try:
        answer = inputs.run(tree_attention)
    except (TypeError, ValueError) as error:
        _one_sentence(error)
    else:
        inputs.check(answer)


_NO_TREES = {
    "a parent after its child": [[-1, 2, 0]],
    "its own parent": [[-1, 1]],
    "no root": [[0, 0, 1]],
    "a parent below -1": [[-1, -2]],
    "a parent that is not there": [[-1, 7]],
    "a second tree that is none": [[-1, 0, 1], [-1, 2, 0]],
}


@pytest.mark.parametrize("parents", _NO_TREES.values(), ids=_NO_TREES.keys())
def test_parents_that_are_no_tree_are_refused(parents: list[list[int]]) -> None:
    _refused(lambda: pack_ancestors(torch.tensor(parents)))


_NO_PARENTS: dict[str, Any] = {
    "a list": [[-1, 0]],
    "floats": torch.tensor([[-1.0, 0.0]]),
    "booleans": torch.tensor([[True, False]]),
    "rank 1": torch.tensor([-1, 0]),
    "rank 3": torch.tensor([[[-1, 0]]]),
}


@pytest.mark.parametrize("parents", _NO_PARENTS.values(), ids=_NO_PARENTS.keys())
def test_parents_of_another_kind_are_refused(parents: Any) -> None:
    _refused(lambda: pack_ancestors(parents))


def _refused(call: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    _one_sentence(caught.value)


def _one_sentence(error: BaseException) -> None:
    said = str(error)
    assert len(said.split()) >= 6, f"too little is said: {said!r}"
    assert said.endswith("."), f"no sentence: {said!r}"
    assert "\n" not in said, f"more than one line: {said!r}"
    assert ". " not in said, f"more than one sentence: {said!r}"
