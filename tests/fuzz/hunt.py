"""One coverage-guided hunt by atheris (libFuzzer): `python tests/fuzz/hunt.py PARSER WORK --seconds N`.

WORK/corpus grows, findings are left in WORK as crash-*, timeout-* or oom-*; exit code 0 means none.
`--keep` instead copies a small set of inputs that together reach all that WORK/corpus does to tests/fuzz/corpus/PARSER.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BENCH_CACHE": "/nonexistent",
}

from fuzz.parsers import CORPUS, PARSERS  # noqa: E402

_TOKENS = (
    r'"{"',
    r'"}"',
    r'"["',
    r'"]"',
    r'"null"',
    r'"true"',
    r'"-1"',
    r'"1e999"',
    r'"NaN"',
    r'"9223372036854775808"',
    r'"\"data_offsets\""',
    r'"\"shape\""',
    r'"\"dtype\""',
    r'"../"',
    r'"\x00"',
    r'"\\ud800"',
    r'"!!python/"',
    r'"&a"',
    r'"*a"',
    r'"<fuzz>"',
    r'"=1+1"',
    r'"PK\x03\x04"',
    r'"PK\x05\x06"',
    r'"PK\x01\x02"',
    r'"GGUF"',
    r'"\xff\xff\xff\xff\xff\xff\xff\x7f"',
)
PACKAGES = ("bench", "methods", "reports", "fuzz", "yaml", "zipfile", "json", "gguf", "csv")
LARGEST_KEPT, MOST_KEPT = 4096, 48
MEMORY_MB = 4096
SECONDS_AN_INPUT = 60


def keep(name: str, found: Path) -> None:
    """The fewest, smallest inputs that reach every line that any of `found` does, beside old findings, in the corpus."""
    feed = PARSERS[name].feed
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    for path in kept.iterdir():
        if not path.name.startswith("finding-"):
            path.unlink()
    reached: set[tuple[str, int]] = set()
    for data in PARSERS[name].seeds:  # these are made anew each time
        reached |= _lines(feed, data)
    inputs = sorted((path.read_bytes() for path in found.iterdir()), key=lambda data: (len(data), data))
    began = time.monotonic()
    for data in inputs:
        if (
            len(data) > LARGEST_KEPT
            or len(list(kept.iterdir())) >= MOST_KEPT
            or time.monotonic() - began > 120
        ):
            break
        lines = _lines(feed, data)
        if lines - reached:
            reached |= lines
            (kept / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)


def _lines(feed: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    """Lines of ours and of the libraries that read for us."""
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        file = frame.f_code.co_filename
        if not any(f"/{part}/" in file for part in (*PACKAGES, "zipfile.py")):
            return None
        seen.add((file, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        feed(data)
    finally:
        sys.settrace(None)
    return seen


def main() -> None:
    """See above."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("parser", choices=PARSERS)
    words.add_argument("work", type=Path)
    words.add_argument("--seconds", type=int, default=600)
    words.add_argument("--keep", action="store_true")
    given = words.parse_args()
    corpus = given.work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    # The finder of an editable install has a loader of its own, which hides the code from the instrumentation.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    if given.keep:
        keep(given.parser, corpus)
        return
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        parser = PARSERS[given.parser]
        feed = parser.feed
    for data in parser.seeds:
        feed(data)  # what is imported late is imported now, and not in the time of the first input
        (corpus / hashlib.sha256(data).hexdigest()[:20]).write_bytes(data)
    if (CORPUS / parser.name).is_dir():
        shutil.copytree(CORPUS / parser.name, corpus, dirs_exist_ok=True)
    tokens = given.work / "tokens"
    tokens.write_text("\n".join(_TOKENS) + "\n", encoding="utf-8")
    options = [
        f"-artifact_prefix={given.work}/",
        f"-dict={tokens}",
        f"-max_len={parser.longest}",
        "-print_final_stats=1",
        "-len_control=20",
    ]
    options += [
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SECONDS_AN_INPUT}",
        f"-max_total_time={given.seconds}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
