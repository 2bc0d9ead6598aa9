"""What `compute-sanitizer` watches: a few cases on the GPU, checked. `test_on_gpu.py` starts it."""

from __future__ import annotations

from dataclasses import replace

import grid
import torch
from subject import tree_attention

_NAMES = (
    "group 7",
    "head dim 80",
    "65 nodes",
    "nothing to spare",
    "one node, nothing to spare",
    "prefix of 65",
    "rows padded differently",
    "window that begins in the padding",
    "a slice",
    "all at once",
)


def main() -> None:
    for name in _NAMES:
        for dtype in (torch.bfloat16, torch.float32):
            inputs = replace(grid.ALL[name], dtype=dtype).inputs("cuda")
            inputs.check(inputs.run(tree_attention))
    print(f"{2 * len(_NAMES)} cases are right")


if __name__ == "__main__":
    main()
