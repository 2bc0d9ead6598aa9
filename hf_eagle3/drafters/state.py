"""What a head remembers between the calls of a conversation. Knows nothing of drafting."""

from __future__ import annotations

import uuid
import weakref
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

_TAGS: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@dataclass
class DraftState:
    """What a head remembers of a conversation, so that the next call can go on from it; plain data, no reference to
    the head, so that the target's cache that carries it can be copied and pickled.

    Args:
        owner: tag of the head that made it.
        cache: the head's keys and values, of real features only.
        pending: features `[batch, rows, boundaries * target_hidden]` that the head has not consumed yet.
        end: position after the last observed one, pending included.
    """

    owner: str
    cache: DynamicCache = field(default_factory=DynamicCache)
    pending: torch.Tensor | None = None
    end: int = 0


def owner_tag(head: nn.Module) -> str:
    """A name for this very head object, for as long as the process lives."""
    return _TAGS.setdefault(head, uuid.uuid4().hex)
