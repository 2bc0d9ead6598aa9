"""A head of whatever kind, loaded: the checkpoint says which class it is.

Knows nothing of targets.
"""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedConfig

from .adapted import read_adapted
from .configuration_eagle import EagleConfig
from .configuration_eagle3 import Eagle3Config
from .head import DraftHead
from .modeling_eagle import EagleDraftModel
from .modeling_eagle3 import Eagle3DraftModel

HEADS: dict[type[PreTrainedConfig], type[DraftHead]] = {Eagle3Config: Eagle3DraftModel, EagleConfig: EagleDraftModel}


def head_from(id_or_path: str | os.PathLike, *model_args: Any, **kwargs: Any) -> Any:
    """What [`DraftHead.from_pretrained`] gives, by the class that the checkpoint is of."""
    found, adapter = read_adapted(id_or_path, kwargs)
    head = next(head for config, head in HEADS.items() if isinstance(found.config, config))
    return head.from_checkpoint(found, adapter, *model_args, **kwargs)


def load_head(id_or_path: str | os.PathLike, **kwargs: Any) -> Any:
    """Load a draft head of any layout that is known here, in evaluation mode, from a folder or the Hub.

    Which layout and conventions were taken is logged by the logger "hf_eagle3" at level INFO.

    Args:
        kwargs: what [`DraftHead.from_pretrained`] takes; the checkpoint's own dtype if none is given.

    Returns:
        an [`Eagle3DraftModel`], or an [`EagleDraftModel`] for heads of EAGLE-1, EAGLE-2 and HASS.

    Raises:
        ImportError, OSError, ValueError: as [`DraftHead.from_pretrained`] does; drafters of other kinds are refused by
            name.
    """
    return head_from(id_or_path, **kwargs).eval()


__all__ = ["HEADS", "head_from", "load_head"]
