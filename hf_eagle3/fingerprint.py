"""Whether a model is the one that it was: a short hash, cheap enough to take of any."""

from __future__ import annotations

import hashlib
from typing import Any


def model_fingerprint(model: Any) -> str:
    """A short hash of a model's class, its text config and a few numbers of each of its tensors."""
    text = model.config.get_text_config(decoder=True)
    whole = hashlib.sha256(f"{type(model).__name__} {text.to_json_string(use_diff=False)}".encode())
    for name, parameter in sorted(model.named_parameters()):
        sample = parameter.detach().flatten()[:64]
        if sample.is_floating_point():
            sample = sample.float()
        whole.update(name.encode() + sample.cpu().numpy().tobytes())
    return whole.hexdigest()[:16]


__all__ = ["model_fingerprint"]
