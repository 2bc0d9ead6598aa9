from __future__ import annotations

import sys
from pathlib import Path

# Test modules here import `golden`, which is no package of ours.
sys.path.insert(0, str(Path(__file__).parent))
