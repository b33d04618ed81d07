"""What was mirrored and uploaded: one small file beside the offline runs, replaced whole at every change."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.mirror.runs import Destination, MirrorRun, mirrored
from bench.results.files import fault, replace_file
from bench.results.remote import mirror_of
from bench.results.segments import Store
from methods.errors import MachineError, StoreError, UserError

__all__ = ["FOLDER", "Entry", "Ledger", "held", "outdated", "store_id"]

FOLDER: Final = "wandb"
"""Under the run's folder; `wandb sync` finds its offline runs there too."""

_NAME: Final = "mirror.json"
_LIMIT: Final = 64 << 20
_SEGMENT = re.compile(r".+-(?P<time>[0-9a-f]{8,20}-[0-9a-f]{6})")

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Entry(BaseModel):
    """One run: the digest of its content as written, the folder that holds it and where that lay; what was uploaded where."""

    model_config = ConfigDict(extra="forbid", strict=True)

    digest: str
    folder: str = Field(pattern=r"^offline-run-[0-9A-Za-z_-]{1,200}$")
    place: str
    uploaded: str = ""
    to: str = ""


class Ledger(BaseModel):
    """All entries by run id, the store's id and name as the first mirror found them, and where its runs last went."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int = Field(default=1, ge=1, le=1)
    store: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str
    project: str = ""
    entity: str = ""
    tags: tuple[str, ...] = Field(default=(), strict=False)
    runs: dict[RunId, Entry] = Field(default_factory=dict)

    @classmethod
    def open(cls, out: Path) -> Self:
        """The ledger of a run's folder, a new one where there is none. Raises StoreError for a damaged one."""
        path = out / FOLDER / _NAME
        try:
            with path.open("rb") as stream:
                found: Any = json.loads(stream.read(_LIMIT))
            return cls.model_validate(found)
        except FileNotFoundError:
            return cls(store=store_id(out), name=out.resolve().name or "store")
        except OSError as error:
            raise fault("read", path, error) from error
        except (ValueError, ValidationError, RecursionError):
            raise StoreError(
                f"{path} is damaged; remove it, and the next mirror writes and uploads every run again, under the same ids"
            ) from None

    def save(self, out: Path) -> None:
        """Write the ledger whole. Raises `MachineError` or `StoreError` where the system refuses."""
        path = out / FOLDER / _NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, self.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise fault("write", path, error) from error


def store_id(out: Path) -> str:
    """Eight hexadecimal digits that a store keeps for life, copied or moved: from the name of its oldest segment.

    Segments are named by writer, time and chance, and new ones are younger. Spools of a URL differ in theirs: there the
    URL gives the id. Raises `StoreError` where there is none.
    """
    elsewhere = mirror_of(out)
    if elsewhere is not None:
        return hashlib.sha256(elsewhere.url.encode()).hexdigest()[:8]
    names = [path.stem for path in (out / "records").glob("*.jsonl")]
    if not names:
        raise StoreError(f"{out} holds no records yet: nothing to mirror")

    def age(name: str) -> tuple[bool, int, str]:
        found = _SEGMENT.fullmatch(name)
        stamp = found["time"].partition("-")[0] if found else "0"
        return (found is None, int(stamp, 16), name)

    return hashlib.sha256(min(names, key=age).encode("utf-8", "surrogateescape")).hexdigest()[:8]


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the mirror of a run's folder. Raises UserError where another process mirrors it, MachineError if unusable."""
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / FOLDER / "mirror.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"--out {out} is being mirrored by another process; wait for it") from None
    except OSError as error:
        raise MachineError(f"{out / FOLDER} cannot be used ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


def outdated(out: Path, ledger: Ledger, destination: Destination) -> tuple[list[MirrorRun], int]:
    """The runs of the store that are not written as they should be, and how many there are in all."""
    history = Store(out).history()
    runs = list(mirrored(history, store=ledger.store, name=ledger.name, destination=destination))
    place = str(out.resolve())
    return [run for run in runs if not _current(out, ledger.runs.get(run.id), run, place)], len(runs)


def _current(out: Path, entry: Entry | None, run: MirrorRun, place: str) -> bool:
    """Whether a run lies there as it should; artifacts name files by whole paths, so a moved folder does not count."""
    return (
        entry is not None
        and entry.digest == run.digest
        and entry.place == place
        and (out / FOLDER / entry.folder / f"run-{run.id}.wandb").is_file()
    )
