"""The W&B server and account that a machine is set up for, and whether they answer: asked once, before any upload."""

from __future__ import annotations

import configparser
import netrc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from methods.errors import MachineError

__all__ = ["Account", "account"]

PATIENCE: Final = 10.0
"""Seconds for the server's first answer."""

_DEFAULT: Final = "https://api.wandb.ai"
_QUERY: Final = "query Viewer { viewer { id entity } }"
_LATER: Final = "; the runs are kept offline, bench wandb-sync uploads them later"


@dataclass(frozen=True)
class Account:
    """A server that answered and whose key holds: its address, and the entity that runs go to by default."""

    url: str
    entity: str

    @property
    def host(self) -> str:
        """The server's name and port, without anything that may be secret."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


def account(environ: Mapping[str, str]) -> Account:
    """Ask the server who we are, once. Raises `MachineError`, one line, where it does not answer or knows no such key.

    Address: WANDB_BASE_URL, W&B's own settings file, or the public one. Key: WANDB_API_KEY or the netrc file, as
    `wandb login` leaves them; a key is never shown, nor written anywhere.
    """
    import httpx

    url = _address(environ)
    shown = urlsplit(url).netloc.rpartition("@")[2] or "the server"
    if environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        # wandb exchanges the token by itself: there is no key to ask with.
        return Account(url, environ.get("WANDB_ENTITY", ""))
    key = _key(environ, url)
    if not key:
        raise MachineError(f"no W&B API key: set WANDB_API_KEY or run wandb login{_LATER}")
    try:
        answer = httpx.post(
            f"{url}/graphql", json={"query": _QUERY}, auth=("api", key), timeout=httpx.Timeout(PATIENCE)
        )
    except httpx.TimeoutException:
        raise MachineError(f"W&B at {shown} did not answer within {PATIENCE:.0f} s{_LATER}") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
        raise MachineError(f"W&B at {shown} cannot be reached{_LATER}") from None
    if answer.status_code in (401, 403):
        raise MachineError(
            f"W&B at {shown} refuses the API key (HTTP {answer.status_code}): set WANDB_API_KEY or run wandb login{_LATER}"
        )
    if answer.status_code != 200:
        raise MachineError(f"W&B at {shown} answers with HTTP {answer.status_code}{_LATER}")
    try:
        viewer = answer.json()["data"]["viewer"]
        entity = viewer["entity"] if viewer is not None else None
    except (ValueError, KeyError, TypeError):
        raise MachineError(f"what answers at {shown} is no W&B server: see WANDB_BASE_URL{_LATER}") from None
    if viewer is None:
        raise MachineError(
            f"W&B at {shown} does not know the API key: set WANDB_API_KEY or run wandb login{_LATER}"
        )
    return Account(url, str(entity or ""))


def _address(environ: Mapping[str, str]) -> str:
    found = environ.get("WANDB_BASE_URL") or _configured(environ) or _DEFAULT
    return found.strip().rstrip("/")


def _configured(environ: Mapping[str, str]) -> str:
    folder = environ.get("WANDB_CONFIG_DIR")
    base = Path(folder) if folder else _home(environ) / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(base / "settings", encoding="utf-8")
    except (configparser.Error, OSError, UnicodeError):
        return ""
    return settings.get("default", "base_url", fallback="")


def _key(environ: Mapping[str, str], url: str) -> str:
    if key := environ.get("WANDB_API_KEY", "").strip():
        return key
    host = urlsplit(url).hostname or ""
    named = environ.get("NETRC")
    for path in [Path(named)] if named else [_home(environ) / ".netrc", _home(environ) / "_netrc"]:
        try:
            found = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError, UnicodeError):
            continue
        if found and found[2]:
            return found[2]
    return ""


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())
