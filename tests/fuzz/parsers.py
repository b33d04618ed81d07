"""Every parser that reads bytes from outside, by name: what to feed it, and examples to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

__all__ = ["CORPUS", "NATIVE", "PARSERS", "Parser", "corpus"]

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Parser:
    """`feed` reads one input: it returns, or raises for a finding. `seeds`: small valid inputs."""

    name: str
    module: str
    function: str
    longest: int = 4096
    """Bytes of the longest input that a hunt tries."""

    @property
    def feed(self) -> Callable[[bytes], None]:
        """The function that reads one input."""
        found: Callable[[bytes], None] = getattr(import_module(self.module), self.function)
        return found

    @property
    def seeds(self) -> list[bytes]:
        """Small valid inputs."""
        found: list[bytes] = getattr(import_module(self.module), f"{self.function}_seeds")()
        return found


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("store", "fuzz.store_parsers", "store"),
        Parser("values", "fuzz.store_parsers", "values"),
        Parser("submission", "fuzz.store_parsers", "submission", 16384),
        Parser("config", "fuzz.text_parsers", "config"),
        Parser("words", "fuzz.text_parsers", "words", 512),
        Parser("published", "fuzz.text_parsers", "published"),
        Parser("texts", "fuzz.text_parsers", "texts"),
        Parser("model", "fuzz.model_parsers", "model"),
        Parser("tensors", "fuzz.model_parsers", "tensors"),
        Parser("tokenizer", "fuzz.model_parsers", "tokenizers"),
        Parser("gguf", "fuzz.model_parsers", "gguf", 65536),
        Parser("wheel", "fuzz.model_parsers", "wheels"),
        Parser("packed", "fuzz.native_parsers", "packed", 2048),
        Parser("abi", "fuzz.native_parsers", "abi", 512),
    )
}
NATIVE = ("packed", "abi")
"""Those whose finding may be a dead process."""


def corpus(name: str) -> list[bytes]:
    """Kept inputs of a parser: every line of its code that a hunt reached, and every finding of old."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*")) if path.is_file()]
