"""Stores at URLs: a local spool, crash-safe as any store, kept equal with immutable objects that anyone may add.

An object store has no append, so every record is an object of its own, `records/<writer>/<sha256>.json`, the framed
line of a segment, and side files lie at `values/<sha256>.safetensors`. Names say the content: writers cannot overwrite
each other, publishing twice changes nothing, and what was altered or cut short is noticed. Pruned models go to
`checkpoints/`. A leaderboard's files, which change, are copied whole. Any URL of fsspec will do: s3://, gs://, file://, ...
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench.results.files import fault, hold, replace_file
from bench.results.segments import FORMAT, MAX_LINE, unframe
from bench.results.values import FOLDER
from methods.errors import MachineError, PruneBenchError, UserError, reason_of, shown

__all__ = ["Mirror", "is_url", "mirror_of", "named", "place", "publishing"]

PERIOD: Final = 5.0
"""Seconds between two looks at what a run has stored since."""
ATTEMPTS: Final = 3
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_OBJECT: Final = re.compile(r"[0-9a-f]{64}\.json")
_HASH: Final = slice(len('{"sha256":"'), len('{"sha256":"') + 64)
_MOST_SLOTS: Final = 64

_mirrors: dict[Path, Mirror] = {}


def is_url(text: object) -> bool:
    """Whether this names a store elsewhere: ``s3://bucket/path``."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)))


def place(text: str) -> Path:
    """The folder to work in: the text's own, or the spool of a URL.

    Raises UserError for a URL that cannot be used, MachineError where the spool cannot be made.
    """
    if not is_url(text):
        return Path(text).expanduser()
    url = text.rstrip("/")
    known = next((mirror for mirror in _mirrors.values() if mirror.url == url), None)
    mirror = known or Mirror(url)
    _mirrors[mirror.folder] = mirror
    return mirror.folder


def mirror_of(folder: Path) -> Mirror | None:
    """The mirror whose spool a folder is, None for a plain folder."""
    return _mirrors.get(folder)


def named(folder: Path) -> str:
    """How the user named a folder: the URL, or the path."""
    mirror = mirror_of(folder)
    return mirror.url if mirror else str(folder)


class Mirror:
    """One process's spool of the store at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files, self.root = _opened(url)
        self._lock = threading.Lock()
        self._there: set[str] | None = None
        self._read: dict[Path, int] = {}
        self._kept: dict[str, int] = {}
        self.spool, self.folder, self._held = _slot(url)

    def fetch(self) -> None:
        """Bring every record and side file that the spool lacks. Raises MachineError, UserError."""
        with self._lock:
            listed = self._list()
            mine = {name for path in self._segments(self.folder) for name, _ in _lines(path)}
            found, lines = [], []
            for name, path in sorted(listed.items()):
                if name in mine:
                    continue
                data = self._call("read", self.files.cat_file, path)
                aside = self.folder / "records" / f"remote-{name[:16]}.torn"
                try:
                    if len(data) > MAX_LINE or data[_HASH].decode() != name:
                        raise ValueError("its content is not what its name says")
                    found.append(unframe(data))
                except (ValueError, UnicodeDecodeError) as error:
                    self._write(aside, _torn(path, data, str(error)))
                    continue
                aside.unlink(missing_ok=True)
                lines.append(data)
            for record in found:
                if record.values:
                    self._fetch_values(record.values)
            if lines:
                data = b"".join(lines)
                self._write(
                    self.folder / "records" / f"fetched-{hashlib.sha256(data).hexdigest()[:24]}.jsonl", data
                )
            if lines or listed:
                self._mark()

    def publish(self) -> int:
        """Make objects of what no object holds yet, in this spool and in those that dead processes left; returns how many.

        Raises MachineError, UserError.
        """
        with self._lock:
            return sum(self._publish(folder) for folder in self._spools())

    def count(self) -> int:
        """Records at the URL. Raises MachineError, UserError."""
        with self._lock:
            return len(self._list())

    def fetch_files(self, part: str, fits: re.Pattern[str]) -> None:
        """Make the spool's files under ``part`` those at the URL whose names fit. Raises MachineError, UserError."""
        with self._lock:
            there = {name: size for name, size in self._files(part).items() if fits.fullmatch(name)}
            for name in self._own(part) - set(there):
                (self.folder / name).unlink()
            for name, size in there.items():
                path = self.folder / name
                if not path.is_file() or path.stat().st_size != size:
                    self._write(path, self._call("read", self.files.cat_file, f"{self.root}/{name}"))

    def replace_files(self, part: str) -> None:
        """Make the URL's files under ``part`` those of the spool. Raises MachineError, UserError."""
        with self._lock:
            own = self._own(part)
            for name in sorted(own, reverse=True):  # values before the records that name them
                self._put(name, (self.folder / name).read_bytes())
            for name in set(self._files(part)) - own:
                self._call("remove", self.files.rm_file, f"{self.root}/{name}")

    def put_files(self, *names: str) -> None:
        """Write files of the spool to the URL. Raises MachineError, UserError."""
        with self._lock:
            for name in names:
                self._put(name, (self.folder / name).read_bytes())

    def waiting(self) -> int:
        """Records of this spool that are not known to be published."""
        there = self._there or set()
        return sum(name not in there for path in self._segments(self.folder) for name, _ in _lines(path))

    def _spools(self) -> list[Path]:
        return [slot / self.folder.name for slot in sorted(self.spool.iterdir()) if slot.is_dir()]

    def _publish(self, folder: Path) -> int:
        there = set(self._list()) if self._there is None else self._there
        self._there = there
        count = 0
        for path in self._segments(folder):
            offset = self._read.get(path, 0)
            for name, line in _lines(path, offset):
                if name not in there:
                    self._publish_values(folder, unframe(line).values)
                    writer = re.sub("[^A-Za-z0-9_-]", "-", path.stem)
                    self._put(f"records/{writer}/{name}.json", line)
                    there.add(name)
                    count += 1
                offset += len(line)
            self._read[path] = offset
        self._publish_checkpoints(folder)
        return count

    def _publish_values(self, folder: Path, name: str) -> None:
        if name and name not in self._kept:
            with suppress(FileNotFoundError):
                self._put(f"{FOLDER}/{name}", (folder / FOLDER / name).read_bytes())
            self._kept[name] = 0

    def _publish_checkpoints(self, folder: Path) -> None:
        for path in sorted((folder / "checkpoints").glob("[!.]*/[!.]*")):
            name = f"checkpoints/{path.parent.name}/{path.name}"
            size = path.stat().st_size
            if self._kept.get(name) == size:
                continue
            target = f"{self.root}/{name}"
            known = self._call("look at", self._size, target)
            if known != size:
                self._call("write", self._upload, path, target)
            self._kept[name] = size

    def _size(self, target: str) -> int | None:
        try:
            return int(self.files.info(target)["size"])
        except FileNotFoundError:
            return None

    def _upload(self, path: Path, target: str) -> None:
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True) if self._local else None
        self.files.put_file(str(path), target)

    def _fetch_values(self, name: str) -> None:
        path = self.folder / FOLDER / name
        if path.exists():
            return
        try:
            data = self._call("read", self.files.cat_file, f"{self.root}/{FOLDER}/{name}")
        except UserError:  # missing there: a figure stands without its raw values, as in any store
            return
        if hashlib.sha256(data).hexdigest() == name.partition(".")[0]:
            self._write(path, data)

    def _list(self) -> dict[str, str]:
        """Objects that may be records: path by hash."""
        found = self._call("list", self.files.find, f"{self.root}/records")
        named = ((path.rpartition("/")[2], path) for path in found)
        return {name.partition(".")[0]: path for name, path in named if _OBJECT.fullmatch(name)}

    def _files(self, part: str) -> dict[str, int]:
        """All files under a part of the URL: size by name."""
        found = self._call("list", lambda path: self.files.find(path, detail=True), f"{self.root}/{part}")
        return {path.removeprefix(self.root).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def _own(self, part: str) -> set[str]:
        """All files under a part of the spool, by name."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in (self.folder / part).rglob("*")
            if path.is_file()
        }

    @property
    def _local(self) -> bool:
        return "file" in self.files.protocol

    def _put(self, name: str, data: bytes) -> None:
        target = f"{self.root}/{name}"
        if self._local:  # elsewhere an object appears whole or not at all
            self._write(Path(target), data)
            return
        self._call("write", self.files.pipe_file, target, data)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
        except OSError as error:
            raise fault("write", path, error) from error

    def _mark(self) -> None:
        marker = self.folder / "store.json"
        if not marker.exists():
            self._write(marker, json.dumps({"store": "prune-bench", "format": FORMAT}).encode() + b"\n")

    def _call(self, verb: str, act: Callable[..., Any], *given: object) -> Any:
        """Ask the store, again after a moment where the network or the server fails."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        asking = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            return asking(act, *given)
        except PruneBenchError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            said = reason_of(error)
            if not _passing(error):
                raise UserError(
                    f"cannot {verb} {self.url}: {said}; see that the bucket is there and that you may use it"
                ) from None
            raise MachineError(f"cannot {verb} {self.url} for now: {said}") from None

    @staticmethod
    def _segments(folder: Path) -> list[Path]:
        return sorted((folder / "records").glob("*.jsonl"))


def _passing(error: BaseException) -> bool:
    """Whether a fault may be gone in a moment: the network's and the server's, not the user's."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | PruneBenchError):
        return False
    return isinstance(error, Exception) and "Credentials" not in type(error).__name__


def _opened(url: str) -> tuple[Any, str]:
    """The file system and the path of a URL."""
    parts = urlsplit(url)
    if parts.username or parts.password or "@" in parts.netloc:
        raise UserError(
            f"the {shown(parts.scheme)}:// URL holds a user name or password, which would end in records and logs; "
            "leave them out and set the environment's, such as AWS_ACCESS_KEY_ID or ~/.aws/credentials"
        )
    if not (parts.netloc or parts.path.strip("/")):
        raise UserError(f"'{shown(url)}' names no place; give scheme://bucket/path")
    try:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if _EXTRAS.get(parts.scheme) == "s3":
            options["config_kwargs"] = {
                "connect_timeout": 5,
                "read_timeout": 60,
                "retries": {"max_attempts": 0},
            }
        files, root = fsspec.core.url_to_fs(url, **options)
        if hasattr(files, "retries"):
            files.retries = 1  # ours are enough, and say when they give up
    except ImportError as error:
        extra = _EXTRAS.get(parts.scheme)
        how = (
            f"pip install 'prune-bench[{extra}]'" if extra else f"install what fsspec needs for it ({error})"
        )
        raise UserError(f"'{shown(url)}' needs a package that is not installed: {how}") from None
    except ValueError as error:
        raise UserError(
            f"'{shown(url)}' is no URL that fsspec knows ({shown(error)}); use s3://, gs:// or file://"
        ) from None
    return files, str(root).rstrip("/")


def _slot(url: str) -> tuple[Path, Path, int]:
    """The URL's spools, a folder of ours in them, and the descriptor that holds it while this process lives."""
    cache = os.environ.get("BENCH_CACHE", "")
    base = Path(cache).expanduser() if cache else Path.home() / ".cache" / "prune-bench"
    spool = base / "spool" / hashlib.sha256(url.encode()).hexdigest()[:24]
    name = re.sub("[^A-Za-z0-9_.-]", "-", url.rpartition("/")[2])[:60].lstrip(".") or "store"
    try:
        for number in range(_MOST_SLOTS):
            slot = spool / str(number)
            (slot / name).mkdir(parents=True, exist_ok=True)
            handle = os.open(slot / "slot.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            if hold(handle):
                return spool, slot / name, handle
            os.close(handle)
    except OSError as error:
        raise fault("use the spool", spool, error) from error
    raise MachineError(f"{_MOST_SLOTS} processes of this machine use {url} already; wait for one of them")


def _lines(path: Path, offset: int = 0) -> Iterator[tuple[str, bytes]]:
    """Whole records of a segment as (hash, line); stops at what is still being written."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while line := stream.readline(MAX_LINE + 1):
                try:
                    unframe(line)
                except ValueError:
                    if not line.endswith(b"\n"):
                        return
                    continue
                yield line[_HASH].decode("ascii"), line
    except OSError as error:
        raise fault("read", path, error) from error


def _torn(path: str, data: bytes, reason: str) -> bytes:
    """A damaged object as the store sets damage aside."""
    kept = data[:MAX_LINE]
    said = f"object {path}: {' '.join(reason.split())}"[:200]
    return json.dumps({"offset": 0, "length": len(kept), "reason": said}).encode() + b"\n" + kept + b"\n"


@contextmanager
def publishing(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Publish what a run stores in its spool while it goes on, and the rest at its end; nothing for a plain folder.

    An outage is said once and never fails the run. Raises MachineError at the end where records still wait.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        yield
        return
    over = threading.Event()
    silent = False

    def once() -> PruneBenchError | None:
        nonlocal silent
        try:
            mirror.publish()
        except PruneBenchError as error:
            if not silent:
                say(f"{error}; results are kept in {mirror.folder} and published later")
            silent = True
            return error
        silent = False
        return None

    def steadily() -> None:
        while not over.wait(PERIOD):
            once()

    try:
        mirror.fetch()
    except MachineError as error:
        say(f"{error}; going on with what is in {mirror.folder}")
        silent = True
    worker = threading.Thread(target=steadily, name="publish", daemon=True)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
        failed = once()
    if failed is not None:
        raise MachineError(
            f"{mirror.waiting()} records wait in {mirror.folder}: {failed}; the next run with --out {mirror.url} publishes them"
        )
