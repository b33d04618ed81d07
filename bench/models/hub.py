"""Models from the Hugging Face hub: exactly the files that are read, at one locked commit, never code.

Runs take safetensors only. Where a repository holds nothing but pickled weights, `bench pull` converts them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.models import convert, lockfile, manifest, weights
from bench.models.cache import (
    cache_root,
    digests,
    discard,
    install,
    locked,
    make_folder,
    readable_size,
    require_disk,
)
from bench.models.path import CONFIG, TOKENIZER_FILES, Checkpoint, read_config
from bench.models.registry import Entry
from methods.errors import CheckpointError, MachineError, ModelUnavailable, PruneBenchError, UserError

__all__ = ["ASK_FROM", "fetch", "pull"]

ASK_FROM = 2 << 30
"""Downloads of more bytes than this are asked for: `bench pull --yes`."""
ANSWER_SECONDS = 5.0
"""How long the hub may take to answer; it is asked twice."""
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
TRUE = ("1", "ON", "YES", "TRUE")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository at one commit: sizes of its files in bytes, sha256 of those that the hub states it for."""

    entry: Entry
    commit: str
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be done to get a model: convert pickled weights, download much."""

    conversion: bool
    large: bool


class _Large(UserError):
    """A download that the user has to agree to."""


def pull(entry: Entry, *, yes: bool, progress: Progress) -> Checkpoint:
    """Fetch a model for `bench pull`, converting pickled weights.

    Raises UserError with the size for a large download without ``yes``, ModelUnavailable, CheckpointError or
    MachineError. The files that an interrupted pull had finished are kept.
    """
    return _obtain(entry, Allowed(conversion=True, large=yes), progress)


def fetch(entry: Entry, *, progress: Progress) -> Checkpoint:
    """Fetch a model for a run: safetensors only, nothing large. Raises ModelUnavailable within seconds."""
    try:
        return _obtain(entry, Allowed(conversion=False, large=False), progress)
    except _Large as error:
        raise ModelUnavailable(f"{error}, or use path:/dir") from error


def _obtain(entry: Entry, allowed: Allowed, progress: Progress) -> Checkpoint:
    if entry.withheld:
        raise ModelUnavailable(f"{entry.id}: {entry.withheld}")
    if _offline():
        raise ModelUnavailable(
            f"{entry.id} is not in the cache and HF_HUB_OFFLINE is set; unset it and run "
            f"`bench pull {entry.id}`, or use path:/dir"
        )
    home = cache_root() / "hub" / entry.repo.replace("/", "--")
    with locked(f"hub-{home.name}"):
        pinned = lockfile.revision(entry.repo)
        remote = _look_up(entry, pinned)
        final = home / remote.commit
        if final.is_dir():
            with contextlib.suppress(CheckpointError):
                return _pinned(entry, manifest.open_pulled(final, entry), {})
            discard(final)
        staged = make_folder(home / f"{remote.commit}.partial")
        # The client names parts by process, so those of a killed pull would never be used.
        for part in staged.rglob("*.incomplete"):
            part.unlink(missing_ok=True)
        origin = _download(remote, staged, allowed, progress)
        written = manifest.write(staged, entry, revision=remote.commit, origin=origin)
        try:
            install(staged, final, written.files)
        except OSError as error:
            raise MachineError(f"{entry.id}: cannot move the model to {final}: {error.strerror}") from error
        progress(f"{entry.id}: ready in {final}")
        return _pinned(entry, manifest.open_pulled(final, entry), origin)


def _pinned(entry: Entry, checkpoint: Checkpoint, origin: Mapping[str, str]) -> Checkpoint:
    """Write the commit to the lock file, unless it is there already."""
    if not lockfile.revision(entry.repo):
        lockfile.pin(entry.repo, checkpoint.revision, checkpoint.files, origin)
    return checkpoint


def _look_up(entry: Entry, pinned: str) -> Remote:
    """Ask the hub for the commit (``pinned``, or main's) and its files. Every answer is checked."""
    import tenacity
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    refused = tenacity.retry_if_not_exception_type((HfHubHTTPError, OfflineModeIsEnabled))
    asking = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(0.5), retry=refused, reraise=True
    )
    with _named(entry, pinned):
        info = asking(
            HfApi(endpoint=_endpoint()).model_info,
            entry.repo,
            revision=pinned or "main",
            files_metadata=True,
            timeout=ANSWER_SECONDS,
        )
    commit = info.sha
    if not isinstance(commit, str) or not lockfile.COMMIT.fullmatch(commit) or (pinned and commit != pinned):
        raise ModelUnavailable(f"{entry.id}: {_shown_endpoint()} names no usable commit for {entry.repo}")
    files = {file.rfilename: file for file in info.siblings or ()}
    sizes = {name: file.size for name, file in files.items() if file.size is not None}
    stated = {name: file.lfs.sha256 for name, file in files.items() if file.lfs is not None}
    return Remote(entry, commit, sizes, stated)


def _download(remote: Remote, staged: Path, allowed: Allowed, progress: Progress) -> dict[str, str]:
    """Bring all that is read into ``staged``; returns sha256 by name of pickled files, now converted."""
    entry = remote.entry
    if CONFIG not in remote.sizes:
        raise CheckpointError(f"{entry.id}: {entry.repo} has no config.json")
    _fetch(remote, CONFIG, staged, progress)
    read_config(staged)
    names = _weight_names(remote, staged, allowed, progress)
    beside = [name for name in TOKENIZER_FILES if name in remote.sizes]
    missing = [name for name in names if name not in remote.sizes]
    if missing:
        raise CheckpointError(f"{entry.id}: {entry.repo} has no {missing[0]}, which its index names")
    pickled = names[0].endswith(".bin")
    total = sum(remote.sizes[name] for name in (*names, *beside))
    if total > ASK_FROM and not allowed.large:
        raise _Large(
            f"{entry.id}: {entry.repo} is a download of {readable_size(total)}, more than "
            f"{readable_size(ASK_FROM)}; run `bench pull {entry.id} --yes`"
        )
    here = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
    copies = sum(remote.sizes[name] for name in names) if pickled else 0
    require_disk(staged, max(0, total - here) + copies, entry.id)
    for number, name in enumerate((*beside, *names), start=1):
        note = f"{number} of {len(beside) + len(names)}"
        progress(f"{entry.id}: {name} ({readable_size(remote.sizes[name])}), {note}")
        _fetch(remote, name, staged, progress)
    found = digests(staged, names)
    for name in names:
        if remote.sha256.get(name, found[name]) != found[name]:
            (staged / name).unlink()
            raise CheckpointError(
                f"{entry.id}: {name} has sha256 {found[name][:16]}…, the hub states "
                f"{remote.sha256[name][:16]}…; it is removed: run `bench pull {entry.id}` again"
            )
    if pickled:
        progress(f"{entry.id}: converting {len(names)} pickled files to safetensors")
        convert.run(staged, names, entry.id)
    _tidy(staged)
    return {name: found[name] for name in names} if pickled else {}


def _weight_names(remote: Remote, staged: Path, allowed: Allowed, progress: Progress) -> tuple[str, ...]:
    """Names of the weight files, chosen as transformers does: safetensors first."""
    entry = remote.entry
    if weights.SINGLE in remote.sizes:
        return (weights.SINGLE,)
    if weights.INDEX in remote.sizes:
        _fetch(remote, weights.INDEX, staged, progress)
        return tuple(sorted(set(weights.shard_names(staged / weights.INDEX).values())))
    if PICKLED not in remote.sizes and PICKLED_INDEX not in remote.sizes:
        raise CheckpointError(f"{entry.id}: {entry.repo} holds neither safetensors nor pytorch_model.bin")
    if not allowed.conversion:
        raise ModelUnavailable(
            f"{entry.id}: {entry.repo} holds pickled weights only, which no run reads; "
            f"`bench pull {entry.id}` converts them once, or use path:/dir"
        )
    if PICKLED in remote.sizes:
        return (PICKLED,)
    _fetch(remote, PICKLED_INDEX, staged, progress)
    return tuple(sorted(set(weights.shard_names(staged / PICKLED_INDEX, ".bin").values())))


def _fetch(remote: Remote, name: str, staged: Path, progress: Progress) -> None:
    """One file into ``staged``, unless it is there; a line that breaks is gone on with."""
    from huggingface_hub import hf_hub_download

    with _named(remote.entry, remote.commit):
        hf_hub_download(
            remote.entry.repo,
            name,
            revision=remote.commit,
            local_dir=staged,
            endpoint=_endpoint(),
            etag_timeout=ANSWER_SECONDS,
            tqdm_class=_bar(progress, f"{remote.entry.id}: {name}", remote.sizes.get(name, 0)),
        )
    size = (staged / name).stat().st_size
    if size != remote.sizes.get(name, size):
        raise CheckpointError(
            f"{remote.entry.id}: {name} has {size} bytes, the hub states {remote.sizes[name]}"
        )


def _tidy(staged: Path) -> None:
    """Leave only what is read: no pickled weights, no bookkeeping of the download."""
    for path in staged.iterdir():
        kept = path.name in (CONFIG, weights.INDEX, *TOKENIZER_FILES) or path.suffix == ".safetensors"
        if path.is_dir():
            discard(path)
        elif not kept:
            path.unlink()


def _bar(progress: Progress, label: str, size: int) -> Any:
    """A tqdm class that turns bytes into a line every few seconds."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    base: Any = tqdm

    class Lines(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings["file"] = io.StringIO()
            settings.pop("name", None)
            super().__init__(*args, **settings)
            self.seen = float(settings.get("initial") or 0)
            self.said = time.monotonic()

        def update(self, n: float | None = 1) -> Any:
            self.seen += n or 0
            if size and time.monotonic() - self.said > 5.0:
                self.said = time.monotonic()
                progress(f"{label}, {min(1.0, self.seen / size):.0%} of {readable_size(size)}")
            return super().update(n)

    return Lines


@contextlib.contextmanager
def _named(entry: Entry, commit: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line of advice, without tokens or signed addresses."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging as client

    verbosity = client.get_verbosity()
    client.set_verbosity(logging.ERROR)
    instead = f"run `bench pull {entry.id}` again once that is mended, or use path:/dir"
    licence = (
        f"{entry.id}: {entry.repo} is gated: accept its licence at {_shown_endpoint()}/{entry.repo}, set "
        f"HF_TOKEN to a token of that account and run `bench pull {entry.id}`, or use path:/dir"
    )
    try:
        yield
    except PruneBenchError:
        raise
    except errors.GatedRepoError as error:
        raise ModelUnavailable(licence) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailable(
            f"{entry.id}: {entry.repo} no longer has the commit {commit[:12]} that "
            f"{lockfile.lock_path()} names; remove its entry there to lock the present main"
        ) from error
    except errors.RepositoryNotFoundError as error:
        if entry.gated:
            raise ModelUnavailable(licence) from error
        raise ModelUnavailable(
            f"{entry.id}: {_shown_endpoint()} has no repository {entry.repo}, or only for a token "
            f"(HF_TOKEN); {instead}"
        ) from error
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ModelUnavailable(_silent(entry, instead)) from error
        raise ModelUnavailable(
            f"{entry.id}: a file of {entry.repo} is gone from the hub; {instead}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403) and entry.gated:
            raise ModelUnavailable(licence) from error
        raise ModelUnavailable(
            f"{entry.id}: {_shown_endpoint()} answers with status {status}; {instead}"
        ) from error
    except Exception as error:  # the client's transport errors have other classes in each major release
        if isinstance(error, OSError) and error.errno in FULL_OR_CLOSED:
            raise MachineError(f"{entry.id}: cannot write to {cache_root()}: {error.strerror}") from error
        raise ModelUnavailable(_silent(entry, instead)) from error
    finally:
        client.set_verbosity(verbosity)


def _silent(entry: Entry, instead: str) -> str:
    return f"{entry.id} is not in the cache and the hub at {_shown_endpoint()} cannot be reached; {instead}"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _shown_endpoint() -> str:
    """The endpoint without a user name and password, should its address hold them."""
    parts = urlsplit(_endpoint())
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
