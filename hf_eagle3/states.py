"""The states of a target that a head reads, captured in one forward.

A boundary `b` is the residual stream that enters target layer `b`; boundary `L`, of a target of `L` layers, is what
leaves the last one. transformers returns boundaries 0 to `L - 1` as `hidden_states[b]`, but has `hidden_states[L]`
AFTER the final norm. So there are two names: `LAST_HIDDEN_STATE` is the state after the norm, and boundary `L`, the
state before it, is taken where it leaves the last layer, by a hook. Knows no heads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from .configuration_eagle3 import LAST_HIDDEN_STATE


def captured(hidden_states: Sequence[torch.Tensor | None] | None, boundaries: Sequence[int]) -> list[torch.Tensor]:
    """The states at the asked boundaries, out of a model output's `hidden_states`, which has boundary `L` never.

    Raises:
        ValueError: if the target does not give them.
    """
    given = hidden_states or ()
    found = dict(enumerate(given[:-1])) | ({LAST_HIDDEN_STATE: given[-1]} if given else {})
    states = [found.get(boundary) for boundary in boundaries]
    if any(state is None for state in states):
        raise ValueError(
            f"The target does not return its hidden states at boundaries {list(boundaries)}, which the head reads; "
            "use a decoder-only model whose forward supports `output_hidden_states`."
        )
    return states  # type: ignore[return-value]


class Capture:
    """
    What one forward is asked for, and where its states are found afterwards.

    Args:
        target: the model.
        boundaries: ascending, `LAST_HIDDEN_STATE` behind all.
    """

    def __init__(self, target: Any, boundaries: Sequence[int]) -> None:
        self.boundaries = list(boundaries)
        self.layers = int(target.config.get_text_config(decoder=True).num_hidden_layers)
        self.last_layer = last_layer(target) if self.layers in self.boundaries else None
        self.behind_last_layer: torch.Tensor | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Keywords for the forward; index `L` of transformers is the state after the final norm."""
        indices = [self.layers if b == LAST_HIDDEN_STATE else b for b in self.boundaries if b != self.layers]
        return {"output_hidden_states": indices} if indices else {}

    def states(self, hidden_states: Sequence[torch.Tensor | None] | None) -> list[torch.Tensor]:
        """One `[batch, rows, target_hidden]` per boundary, of the forward that ran last under this capture.

        Raises:
            ValueError: if the target did not give them.
        """
        listed = [boundary for boundary in self.boundaries if boundary != self.layers]
        found = dict(zip(listed, captured(hidden_states, listed), strict=True))
        if self.behind_last_layer is not None:
            found[self.layers] = self.behind_last_layer
        elif self.last_layer is not None:
            raise ValueError(
                f"The target did not run its {type(self.last_layer).__name__}, whose output the head reads."
            )
        return [found[boundary] for boundary in self.boundaries]


def input_device(target: Any) -> torch.device:
    """Where a target takes its token ids; one that is offloaded has its weights on `meta`, and moves ids by itself."""
    return torch.device("cpu") if target.device.type == "meta" else target.device


@contextmanager
def capturing(target: Any, boundaries: Sequence[int]) -> Iterator[Capture]:
    """Capture states of the forwards made inside, which are to be given the keywords `capture.asked`.

    Raises:
        ValueError: if boundary `L` is asked for and the target's last layer cannot be found.
    """
    capture = Capture(target, boundaries)
    token = _CAPTURE.set(capture)
    try:
        yield capture
    finally:
        _CAPTURE.reset(token)


# ---------------------------------------------------------------------- the hook behind the last layer

# Of this thread: a hook stays on a layer that others may run at the same time, and writes into its own call's capture.
_CAPTURE: ContextVar[Capture | None] = ContextVar("hf_eagle3_capture", default=None)
_LAST_LAYERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def last_layer(target: Any) -> nn.Module:
    """The target's last decoder layer, hooked once and for all; idle outside of a capture.

    It is looked for as the last of the first list of `L` modules in the target's decoder, and believed to be it if
    what enters it is the target's boundary `L - 1`.

    Raises:
        ValueError: if there is none, or something else enters it.
    """
    with _LOCK:
        known = _LAST_LAYERS.get(target)
        layer = known() if known is not None else None
        if layer is None:
            layer = _find_last_layer(target)
            layer.register_forward_hook(_record)
            _LAST_LAYERS[target] = weakref.ref(layer)
    return layer


def _record(layer: nn.Module, args: Any, output: Any) -> None:
    capture = _CAPTURE.get()
    if capture is not None and capture.last_layer is layer:
        capture.behind_last_layer = _first(output)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _find_last_layer(target: Any) -> nn.Module:
    layers = target.config.get_text_config(decoder=True).num_hidden_layers
    lists = (module for module in target.get_decoder().modules() if isinstance(module, nn.ModuleList))
    found = next((modules[-1] for modules in lists if len(modules) == layers), None)
    if found is None:
        raise ValueError(_not_found(target, f"its decoder holds no list of {layers} layers"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    this_thread = threading.get_ident()  # others may be running the target

    def see(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entering = args[0] if args else kwargs.get("hidden_states")
        if threading.get_ident() == this_thread and isinstance(entering, torch.Tensor):
            seen.append((entering, _first(output)))

    handle = found.register_forward_hook(see, with_kwargs=True)
    try:
        ids = torch.tensor([[0, 1]], device=input_device(target))
        out = target(ids, output_hidden_states=[layers - 1], use_cache=False)
    finally:
        handle.remove()
    [entering] = captured(out.hidden_states, [layers - 1])
    if len(seen) != 1 or not torch.equal(seen[0][0].to(entering.device), entering):
        raise ValueError(_not_found(target, f"boundary {layers - 1} is not what enters {type(found).__name__}"))
    if seen[0][1].shape != entering.shape:
        raise ValueError(_not_found(target, f"{type(found).__name__} does not give one state a token"))
    return found


def _not_found(target: Any, why: str) -> str:
    return (
        f"The head reads what leaves the last layer of {type(target).__name__}, before the final norm, but that layer "
        f"was not found ({why}); use the target this head was trained for."
    )
