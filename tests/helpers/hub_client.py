"""The real client of this process, pointed at a loopback Hub.

What the client takes at import, and so does not see changed later (huggingface_hub 2.4; 1.33 works as well):

- `constants`: ENDPOINT, HUGGINGFACE_CO_URL_TEMPLATE, HF_URL_HOSTS, HF_HOME and every path below it, HF_HUB_OFFLINE,
  HF_HUB_DISABLE_XET. Nearly all modules read them through `constants.` at each call: setting them there is enough.
- Copies: `hf_api.api.endpoint` (and with it the module's functions `whoami`, `create_repo`, ...),
  `utils._http._HUB_ORIGINS`, `utils._cache_manager.HF_HUB_CACHE`, `utils._cache_assets.HF_ASSETS_CACHE`,
  `utils._git_credential.ENDPOINT`, `utils._detect_agent._registry`, `cli.auth.ENDPOINT`; outside it
  `transformers.utils.hub._hf_api`, and in `datasets.config` the endpoint and the offline flags.

`pointed_at` sets these in this process, but for `_HUB_ORIGINS`, which matters only to a Hub that redirects to another;
`HubServer.environment` is for a subprocess, which needs no more.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from huggingface_hub import HfApi

    from .hub_server import HubServer

SWITCHES = {
    "HF_HUB_OFFLINE": "0",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


class _Clock:
    """The `time` module, where nobody sleeps longer than `longest` seconds: the client waits 1, 2, 4, 8 by itself."""

    def __init__(self, longest: float) -> None:
        self.longest = longest

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, self.longest))


def pointed_at(
    server: HubServer | str,
    monkeypatch: pytest.MonkeyPatch,
    home: Path | str,
    token: str | None = None,
    longest_wait: float = 0.02,
) -> HfApi:
    """Sets this process's client, and transformers and datasets where they are loaded, on `server`, or the one at
    that address, for one test.

    The cache and the token's file are below `home`; `token` is what HF_TOKEN holds; between its tries the client waits
    `longest_wait` seconds at most. A module that is imported for the first time after this keeps what it then copies.
    Returns an `HfApi` of that Hub.
    """
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _cache_assets, _cache_manager, _git_credential, _http

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, SWITCHES[name])

    url = server if isinstance(server, str) else server.url
    values = _constants(url, Path(home), constants.HF_URL_HOSTS)
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(hf_api.api, "_whoami_cache", {})
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", values["HF_HUB_CACHE"])
    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", values["HF_ASSETS_CACHE"])
    monkeypatch.setattr(_git_credential, "ENDPOINT", url)
    _set_where_loaded(monkeypatch, url)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", _Clock(longest_wait))
    _http.close_session()  # a client made before would not know of NO_PROXY
    return hf_api.HfApi(endpoint=url, token=token)


def _constants(url: str, home: Path, hosts: frozenset[str]) -> dict[str, Any]:
    """The constants that the client derives from its environment, derived from another."""
    paths = {
        "HF_HOME": ".",
        "HF_HUB_CACHE": "hub",
        "HUGGINGFACE_HUB_CACHE": "hub",
        "HF_ASSETS_CACHE": "assets",
        "HUGGINGFACE_ASSETS_CACHE": "assets",
        "HF_XET_CACHE": "xet",
        "HF_TOKEN_PATH": "token",
        "HF_STORED_TOKENS_PATH": "stored_tokens",
        "AGENT_HARNESSES_PATH": ".agent_harnesses.json",
        "CHECK_FOR_UPDATE_DONE_PATH": ".check_for_update_done",
    }
    return {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": hosts | {"127.0.0.1"},
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        **{name: str(home / below) for name, below in paths.items()},
    }


def _set_where_loaded(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    datasets = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False}
    template = {"HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}"}
    copies: dict[str, dict[str, Any]] = {
        "huggingface_hub.cli.auth": {"ENDPOINT": url},
        "huggingface_hub.utils._detect_agent": {"_registry": {"standardEnvVars": [], "harnesses": {}}},
        "transformers.utils.hub": {"_hf_api": None},  # made anew at its next use
        "datasets.config": {**datasets, **template},
    }
    for module, values in copies.items():
        for name, value in values.items():
            if module in sys.modules:
                monkeypatch.setattr(sys.modules[module], name, value)
