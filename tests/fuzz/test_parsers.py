"""Every parser on its kept inputs, and on a small number of seeded changes of them; `nox -s fuzz` hunts for longer."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz.parsers import CORPUS, NATIVE, PARSERS, corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHANGES = 40
"""Changed inputs of each parser."""
SLOW = {"gguf": 4, "submission": 8, "tokenizer": 12}
PIECES = (
    b"{", b"}", b"[", b"]", b'"', b"null", b"-1", b"1e999", b"NaN", b"\x00", b"\xff" * 8, b"../", b"<fuzz>", b"=1+1",
    b"!!python/",
    b"&a *a", b"9223372036854775808", b"\\ud800", b"\xe2\x80\xae", b"\n", b",", b":", b"PK\x05\x06", b'"a":' * 200, b"[" * 2000,
)  # fmt: skip


def changed(rng: random.Random, inputs: list[bytes]) -> bytes:
    """One of the inputs with up to four cuts, repeats, swaps, and pieces put in."""
    data = bytearray(rng.choice(inputs))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 2, 8, 64, 1000)))
        way = rng.randrange(5)
        if way == 0:
            del data[at:end]
        elif way == 1:
            data[at:at] = rng.choice(PIECES)
        elif way == 2:
            data[at:end] = rng.randbytes(end - at)
        elif way == 3:
            data[at:at] = data[at:end] * rng.randint(1, 3)
        else:
            other = rng.choice(inputs)
            data[at:] = other[len(other) * at // max(1, len(data)) :]
    return bytes(data)


@pytest.mark.parametrize("name", [name for name in PARSERS if name not in NATIVE])
def test_a_parser_reads_or_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK", "")
    parser = PARSERS[name]
    inputs = [*parser.seeds, *corpus(name)]
    for data in inputs:
        parser.feed(data)
    rng = random.Random(f"{name} 0")
    for _ in range(SLOW.get(name, CHANGES)):
        parser.feed(changed(rng, inputs))


@pytest.mark.parametrize("name", NATIVE)
def test_native_code_reads_or_refuses_and_lives(name: str, tmp_path: Path) -> None:
    """In a process of its own: a finding may end it. The input at fault is left in a file."""
    from methods.kernels import _native

    if name == "abi" and _native.load("cpu").handle is None:
        pytest.skip("no native library: no compiler was there when this was installed")
    last = tmp_path / "last"
    code = (
        "import random, sys, pathlib\n"
        "from fuzz.parsers import PARSERS, corpus\nfrom fuzz.test_parsers import changed\n"
        f"parser, last, rng = PARSERS[{name!r}], pathlib.Path({str(last)!r}), random.Random(0)\n"
        f"inputs = [*parser.seeds, *corpus({name!r})]\n"
        "for data in inputs + [changed(rng, inputs) for _ in range(1500)]:\n"
        "    last.write_bytes(data)\n    parser.feed(data)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(root), str(root / 'tests')]!r}\n{code}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"code {done.returncode} at {last.read_bytes()!r}\n{done.stderr[-2000:]}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def objects(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A JSON object, some of whose values are others'."""
    spoilt = draw(st.sets(st.sampled_from(sorted(whole)), max_size=3))
    return {key: draw(json_values) if key in spoilt else value for key, value in whole.items()}


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_values_of_other_types_in_every_json_file(data: st.DataObject) -> None:
    """Random bytes seldom parse: here the JSON is whole, and single values are of other types or sizes."""
    import json

    name, at = data.draw(
        st.sampled_from([("model", n) for n in range(6)] + [("store", 2), ("store", 6), ("store", 7)])
    )
    seed = PARSERS[name].seeds[at]
    whole = json.loads(seed[1:])
    text = json.dumps(data.draw(objects(whole)))
    PARSERS[name].feed(seed[:1] + text.encode("utf-8", "surrogatepass"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.integers(0, 12),
    text=st.text(alphabet=st.sampled_from("0123456789.:%@+-=,|*/abeginorstwx \n\0é"), max_size=40),
)
def test_what_is_typed_is_read_or_refused(kind: int, text: str) -> None:
    PARSERS["words"].feed(bytes([48 + kind]) + text.encode())


def test_the_corpus_is_small_and_of_known_parsers() -> None:
    folders = sorted(CORPUS.iterdir())
    assert {folder.name for folder in folders} <= set(PARSERS)
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert max(sizes) <= 65536 and sum(sizes) < 1 << 20
