"""One file out of a folder or a Hub repository: found, checked against the hash that the Hub gave it, or refused.

The client itself compares sizes only, and keeps a damaged file for good. In its cache a file is a link to one that is
named by its hash, so whoever reads it can look. Where the cache has no links (Windows without the right to make them)
there is no hash to compare with.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from transformers.utils.hub import resolve_revision

from .hub_errors import explained

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK = 1 << 20


def hub_arguments(source: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes the Hub's arguments out of `kwargs`, and asks once which commit is meant: all files of a head come from
    one commit, and those that are in the cache are taken without a question."""
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    hub = {name: value for name, value in hub.items() if value is not None}
    asked = {name: hub[name] for name in ("revision", "token", "local_files_only", "cache_dir") if name in hub}
    revision = resolve_revision(source, **asked)
    return hub if revision is None else {**hub, "revision": revision}


def fetch(source: str | os.PathLike, name: str, hub: Mapping[str, Any]) -> str | None:
    """The path of one file, in the folder or in the cache; None if there is none, or if it is not in the cache and the
    Hub may not be asked.

    Raises:
        OSError: if the Hub cannot be reached or does not give it, or its content is not what the Hub announced.
    """
    source = os.fspath(source)
    if os.path.isdir(source):
        path = os.path.join(source, hub.get("subfolder") or "", name)
        found = path if os.path.isfile(path) else None
    elif _known_absent(source, name, hub):
        return None
    else:
        found = _download(source, name, hub)
    if found is not None:
        check_hash(found)
    return found


def absent(source: str | os.PathLike, names: tuple[str, ...], hub: Mapping[str, Any]) -> OSError:
    """Why none of the files `names` is there."""
    wanted = ", ".join(names)
    at = f" at revision {str(hub['revision'])!r}" if hub.get("revision") else ""
    below = f" in its folder {hub['subfolder']}" if hub.get("subfolder") else ""
    if not os.path.isdir(source) and _is_offline(hub):
        why = "the Hub is switched off (HF_HUB_OFFLINE)" if is_offline_mode() else "local_files_only=True was given"
        cache = hub.get("cache_dir") or constants.HF_HUB_CACHE
        return OSError(
            f"{source}{at} is no folder here, and the cache {cache} holds none of {wanted}{below} for it, while "
            f"{why}: load it once with the Hub, or name a folder."
        )
    return OSError(f"{source}{at} holds none of {wanted}{below}, which a head needs; check what it is.")


def check_hash(path: str) -> None:
    """Refuse a file of the cache whose content is not what its name there says: sha256 of a large file, git's sha1 of
    a small one. Nothing is removed.

    Raises:
        OSError: naming the file and both hashes.
    """
    if not os.path.islink(path):
        return
    announced = os.path.basename(os.readlink(path))
    if re.fullmatch(r"[0-9a-f]{64}", announced):
        kind, digest = "sha256", hashlib.sha256()
    elif _COMMIT.fullmatch(announced):
        kind, digest = "git's sha1", hashlib.sha1(b"blob %d\0" % os.path.getsize(path), usedforsecurity=False)
    else:
        return
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != announced:
        raise OSError(
            f"{path} is not the file that the Hub announced ({kind} {announced[:12]}..., here "
            f"{digest.hexdigest()[:12]}...): it was damaged on its way or on this disk; load it again "
            "with `force_download=True`."
        )


def _download(source: str, name: str, hub: Mapping[str, Any]) -> str | None:
    try:
        return str(hf_hub_download(source, name, library_name="hf-eagle3", **hub))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if _is_offline(hub):
            return None
        raise explained(error, source, hub.get("revision"), hub.get("token")) from error
    except OfflineModeIsEnabled:
        return None
    except (OSError, HTTPError, HFValidationError) as error:
        raise explained(error, source, hub.get("revision"), hub.get("token")) from error
    except ValueError as error:  # of `force_download`: with another option that forbids it, or for what went wrong
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise explained(error.__cause__, source, hub.get("revision"), hub.get("token")) from error


def _is_offline(hub: Mapping[str, Any]) -> bool:
    return bool(hub.get("local_files_only")) or is_offline_mode()


def _known_absent(source: str, name: str, hub: Mapping[str, Any]) -> bool:
    """Whether the cache knows that this very commit has no such file."""
    revision = hub.get("revision")
    commit = getattr(revision, "resolved", revision)
    if hub.get("force_download") or commit is None or not _COMMIT.fullmatch(commit):
        return False
    path = f"{hub['subfolder']}/{name}" if hub.get("subfolder") else name
    try:
        found = try_to_load_from_cache(source, path, cache_dir=hub.get("cache_dir"), revision=commit)
    except HFValidationError:
        return False  # the download says so
    return found is _CACHED_NO_EXIST


__all__ = ["HUB_ARGUMENTS", "absent", "check_hash", "fetch", "hub_arguments"]
