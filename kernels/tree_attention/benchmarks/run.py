"""The kernel's benchmark.

python kernels/tree_attention/benchmarks/run.py measure --quick --json results.json
python kernels/tree_attention/benchmarks/run.py --help
"""

from __future__ import annotations

import sys

from tree_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
