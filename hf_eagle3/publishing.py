"""What a head can do on the Hub beside loading; the work is `hf_eagle3.hub`'s, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# What `save_pretrained(push_to_hub=True)` takes for the push.
_HUB = ("repo_id", "private", "token", "revision", "commit_message", "commit_description", "create_pr")


class Published:
    """Goes before `PreTrainedModel` among the bases of a head."""

    if TYPE_CHECKING:
        generation_config: GenerationConfig

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
        target: PreTrainedModel | str | os.PathLike | None = None,
        engine_version: str | None = None,
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
            target, engine_version: for a `layout`, as [`hf_eagle3.hub.export.export_head`] takes them.
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

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        layout: str | None = None,
        target: PreTrainedModel | str | os.PathLike | None = None,
        engine_version: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save config, generation config and safetensors, as transformers has it; never embeddings that are borrowed
        from a target. With `push_to_hub=True`, a whole repository is pushed and not these files alone.

        Args:
            layout: "sglang", "vllm", "speculators" or "eagle" writes the files that those programs load instead.
            target, engine_version: for a `layout`, as [`hf_eagle3.hub.export.export_head`] takes them.

        Raises:
            ValueError: if the layout cannot say how this head computes.
        """
        if layout is not None:
            _refuse_with_layout(args, kwargs)
            export = importlib.import_module("hf_eagle3.hub.export")
            export.export_head(self, save_directory, layout, target=target, engine_version=engine_version)
            return
        pushed = kwargs.pop("push_to_hub", False)
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        self.generation_config.save_pretrained(save_directory)
        if pushed:
            self.push_to_hub(hub.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **hub)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing: `trust_remote_code` asks for it, and saved heads would then carry copies of our modules."""


def _refuse_with_layout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if args or kwargs:
        given = ", ".join([*map(repr, args), *kwargs])
        raise ValueError(f"`save_pretrained` was given {given} beside `layout`, which takes none of it; leave it out.")


__all__ = ["Published"]
