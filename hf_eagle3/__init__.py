"""EAGLE-3 speculative decoding, native to Hugging Face transformers.

```python
import hf_eagle3
head = hf_eagle3.Eagle3DraftModel.from_pretrained("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B")
target.generate(**inputs, assistant_model=head)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .configuration_eagle import EagleConfig
from .configuration_eagle3 import Eagle3Config
from .drafters.eagle import EagleCandidateGenerator
from .drafters.eagle3 import Eagle3CandidateGenerator
from .drafters.parallel import ParallelCandidateGenerator
from .generation import drafting_with, install, uninstall
from .loading import load_head
from .modeling_eagle import EagleDraftModel
from .modeling_eagle3 import Eagle3DraftModel, Eagle3Output
from .static_tree import StaticTree
from .tree import DraftTree, TreeShape
from .tree_kernel import use_tree_kernel

if TYPE_CHECKING:
    from .training.arguments import Eagle3TrainingArguments
    from .training.trainer import Eagle3Trainer

__version__ = "0.1.0.dev0"

__all__ = [
    "DraftTree",
    "Eagle3CandidateGenerator",
    "Eagle3Config",
    "Eagle3DraftModel",
    "Eagle3Output",
    "Eagle3Trainer",
    "Eagle3TrainingArguments",
    "EagleCandidateGenerator",
    "EagleConfig",
    "EagleDraftModel",
    "ParallelCandidateGenerator",
    "StaticTree",
    "TreeShape",
    "drafting_with",
    "install",
    "load_head",
    "uninstall",
    "use_tree_kernel",
]

# Names whose modules need more than drafting does; imported when they are asked for.
_LATER = {"Eagle3Trainer": ".training.trainer", "Eagle3TrainingArguments": ".training.arguments"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


install()
