"""Where this package is installed from: the one place that knows, for README, Space and repositories of heads.

A git tag until the package is published on PyPI. Knows nothing else of the package, so that a build can read it.
"""

from __future__ import annotations

REPOSITORY = "https://github.com/hf-eagle3/hf-eagle3"
TAG = "v0.1.0"
# A requirement as pip and a requirements.txt take it.
REQUIREMENT = f"hf-eagle3 @ git+{REPOSITORY}@{TAG}"
# What an error message or a README tells a reader to type.
INSTALL_COMMAND = f"pip install 'git+{REPOSITORY}@{TAG}'"


def install_command(extra: str) -> str:
    """What to type for what an extra of this package needs."""
    return f"pip install '{REQUIREMENT.replace('hf-eagle3', f'hf-eagle3[{extra}]', 1)}'"
