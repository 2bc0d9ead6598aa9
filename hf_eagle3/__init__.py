"""EAGLE-3 speculative decoding, native to Hugging Face transformers.

```python
import hf_eagle3
head = hf_eagle3.Eagle3DraftModel.from_pretrained("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B")
target.generate(**inputs, assistant_model=head)
```
"""

from __future__ import annotations

from .configuration_eagle3 import Eagle3Config
from .drafters.eagle3 import Eagle3CandidateGenerator
from .generation import drafting_with, install, uninstall
from .modeling_eagle3 import Eagle3DraftModel, Eagle3Output
from .tree import DraftTree, TreeShape

__version__ = "0.1.0.dev0"

__all__ = [
    "DraftTree",
    "Eagle3CandidateGenerator",
    "Eagle3Config",
    "Eagle3DraftModel",
    "Eagle3Output",
    "TreeShape",
    "drafting_with",
    "install",
    "uninstall",
]

install()
