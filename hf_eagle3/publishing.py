"""What a head can do on the Hub beside loading; the work is `hf_eagle3.hub`'s, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
from typing import Any

# What `save_pretrained(push_to_hub=True)` takes for the push.
_HUB = ("repo_id", "private", "token", "revision", "commit_message", "commit_description", "create_pr")


class Published:
    """Goes before `PreTrainedModel` among the bases of a head."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        create_pr: bool = False,
        layout: str | None = None,
        records: str | os.PathLike | None = None,
        max_shard_size: int | str = "50GB",
    ) -> Any:
        """Upload this head as a repository that loads in one line: weights, config, card, records, and the code for
        `custom_generate=` and `trust_remote_code=True`.

        Args:
            private: whether a repository that this call creates is private; one that is there stays as it is.
            revision: the branch to push to, made if it is not there; `main` if None.
            create_pr: open a pull request instead of a commit to `main`.
            layout: push the files that an engine loads ("sglang", "vllm", "speculators", "eagle") instead of ours.
            records: the folder where `training.json`, the recipe, evaluations and perhaps a `README.md` lie; the one
                that the head was loaded from if None.

        Returns:
            The commit, a `huggingface_hub.CommitInfo`, whose text is its address.

        Raises:
            ValueError: if the options do not fit together.
            OSError: if the Hub refuses, or the connection ends: nothing is visible there then.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "repo_id")}
        return importlib.import_module("hf_eagle3.hub.push").push_to_hub(self, repo_id, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As transformers has it; with `push_to_hub=True`, a whole repository is pushed and not these files alone."""
        pushed = kwargs.pop("push_to_hub", False)
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if pushed:
            self.push_to_hub(hub.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **hub)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing: `trust_remote_code` asks for it, and saved heads would then carry copies of our modules."""


__all__ = ["Published"]
