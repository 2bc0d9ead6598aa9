"""Upload: a repository laid out as a folder becomes one commit, so that nobody ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ..hub_errors import explained
from . import adapters, code, repository
from .facts import EVALUATIONS, RECIPE, TRAINING

# Files of an earlier push that this one may not have, and that a loader, or a card, would take for its own.
REPLACED = (
    *("config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors"),
    *("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
    *(f"{code.MODULE}.py", code.GENERATE, code.REQUIREMENTS),
    *(TRAINING, RECIPE, f"{EVALUATIONS}/*.json"),
)


def push_to_hub(
    head: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    layout: str | None = None,
    target: Any = None,
    engine_version: str | None = None,
    records: str | os.PathLike | None = None,
    max_shard_size: int | str = "50GB",
    base: str | None = None,
) -> CommitInfo:
    """Upload a head, or the adapter of one (a `PeftModel`, or the folder of a saved one).

    Args:
        base: Hub id of the head that an adapter belongs to, where the adapter does not say it.
        others: see [`Eagle3DraftModel.push_to_hub`].

    Raises:
        ValueError: if the options do not fit together.
        OSError: if the Hub refuses, or the connection ends: nothing is visible there then.
    """
    with tempfile.TemporaryDirectory() as folder:
        lay_out(
            head,
            folder,
            repo_id=repo_id,
            layout=layout,
            target=target,
            engine_version=engine_version,
            records=records,
            max_shard_size=max_shard_size,
            base=base,
        )
        return upload(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message or f"Upload {'adapter' if adapters.is_adapter(head) else 'head'}",
            commit_description=commit_description,
            create_pr=create_pr,
        )


def lay_out(
    head: Any,
    folder: str | os.PathLike,
    *,
    base: str | None = None,
    records: str | os.PathLike | None = None,
    repo_id: str | None = None,
    **of_heads: Any,
) -> Path:
    """What `push_to_hub` uploads, written into `folder`; `of_heads` as [`repository.lay_out`] takes them."""
    if adapters.is_adapter(head):
        if of_heads.get("layout") is not None:
            layout = of_heads["layout"]
            raise ValueError(f"Got layout={layout!r} for an adapter, but engines load whole heads; merge it first.")
        return adapters.lay_out(head, folder, base=base, records=records, repo_id=repo_id)
    if base is not None:
        raise ValueError(f"Got the base {base!r} for a whole head, which needs none; leave it out.")
    return repository.lay_out(head, folder, records=records, repo_id=repo_id, **of_heads)


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload",
    commit_description: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload a folder in one commit. Large files go first; one that an earlier try sent whole is not sent again.

    Raises:
        ValueError: if both a branch and a pull request are wanted.
        OSError: if the Hub refuses, or the connection ends.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"Got the branch {revision!r} and create_pr=True, but pull requests go to main; choose.")
    valid_repo_id(repo_id)
    api = HfApi(token=token, library_name="hf-eagle3")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            revision=revision,
            commit_message=commit_message,
            commit_description=commit_description,
            create_pr=create_pr,
            delete_patterns=list(REPLACED),
        )
    except RuntimeError as error:  # of a large file that could not be sent, however often it was tried
        raise OSError(
            f"{_first_line(error)} while pushing to {repo_id} ({_first_line(error.__cause__ or error)}): nothing of "
            "it is visible there; push again, and what has arrived whole is not sent twice."
        ) from error
    except HfHubHTTPError as error:
        raise explained(error, repo_id, revision, token) from error
    except ValueError as error:  # of the card, which the Hub looks through before it takes it
        raise ValueError(f"{' '.join(str(error).split())}: nothing was pushed to {repo_id}; mend the card.") from error
    except (HTTPError, ConnectionError) as error:
        raise explained(error, repo_id, revision, token) from error


def valid_repo_id(repo_id: str) -> str:
    """A repository id, as it is.

    Raises:
        ValueError: if the Hub would not have one of that form.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository id; give one of the form owner/name.") from error
    return repo_id


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__


__all__ = ["lay_out", "push_to_hub", "upload", "valid_repo_id"]
