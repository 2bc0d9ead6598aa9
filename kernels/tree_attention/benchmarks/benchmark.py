"""For `kernels benchmark REPOSITORY`, which loads the kernel, checks each workload and times it beside its check: one
layer of Llama-3.1-8B with a tree of 60 nodes, beside sdpa with a dense mask. The whole comparison is `run.py`.

Stands by itself: of this folder, the Hub keeps the files that are named like this one.
"""

from __future__ import annotations

import torch
from kernels.benchmark import Benchmark

HEADS, KV_HEADS, DIM, NODES = 32, 8, 128, 60


class TreeAttentionBenchmark(Benchmark):
    seed = 0

    def setup_2k(self) -> None:
        self._set_up(2048)

    def setup_8k(self) -> None:
        self._set_up(8192)

    def setup_32k(self) -> None:
        self._set_up(32768)

    def benchmark_2k(self) -> None:
        self._run()

    def benchmark_8k(self) -> None:
        self._run()

    def benchmark_32k(self) -> None:
        self._run()

    def verify_2k(self) -> torch.Tensor:
        return self._dense()

    def verify_8k(self) -> torch.Tensor:
        return self._dense()

    def verify_32k(self) -> torch.Tensor:
        return self._dense()

    def _set_up(self, length: int) -> None:
        def noise(heads: int, rows: int) -> torch.Tensor:
            return torch.randn(1, heads, rows, DIM, device=self.device, dtype=torch.bfloat16)

        self.q, self.k, self.v = noise(HEADS, NODES), noise(KV_HEADS, length), noise(KV_HEADS, length)
        self.prefix_len = length - NODES
        parents = torch.tensor([[(node - 1) // 2 for node in range(NODES)]], device=self.device)
        self.words = self.kernel.pack_ancestors(parents)
        prefix = torch.ones(1, NODES, self.prefix_len, dtype=torch.bool, device=self.device)
        self.mask = torch.cat([prefix, self.kernel.unpack_ancestors(self.words, NODES)], dim=-1)[:, None]

    def _run(self) -> None:
        self.out = self.kernel.tree_attention(self.q, self.k, self.v, self.words, prefix_len=self.prefix_len)

    def _dense(self) -> torch.Tensor:
        k, v = (states.repeat_interleave(HEADS // KV_HEADS, dim=1) for states in (self.k, self.v))
        out = torch.nn.functional.scaled_dot_product_attention(self.q, k, v, attn_mask=self.mask)
        return out.transpose(1, 2)
