"""A served model as lm-evaluation-harness sees one: its tokens as the harness cuts them, its answers scored our way."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM

from bench.models.tokenizing import tokenizing
from methods.errors import UnsupportedModel
from methods.inference.answers import score_answers
from methods.inference.served import Served
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Scorer"]


class Scorer(TemplateLM):  # type: ignore[misc]  # the harness ships no types
    """Log-likelihoods for the harness; counts of what was asked and of what was computed."""

    backend = "causal"

    def __init__(
        self,
        model: Served,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        batch_tokens: int,
        observer: Observer,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.context = context
        self.batch_tokens = batch_tokens
        self.observer = observer
        self.requests = self.cut = self.tokens = self.computed = self.logits = 0
        self.seconds = 0.0
        self._encode = functools.lru_cache(maxsize=1 << 12)(self._encoded)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._special("eos_token_id", "bos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before an answer without context: the beginning of a text, else its end."""
        return self._special("bos_token_id", "eos_token_id")

    def _special(self, *names: str) -> int:
        for name in names:
            found = getattr(self.tokenizer, name)
            if found is not None:
                return int(found)
        raise UnsupportedModel(
            "the tokenizer names no token that begins or ends a text, which requests without context need"
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the tokenizer's own special tokens unless told otherwise or there already."""
        return list(self._encode(string, add_special_tokens))

    def _encoded(self, string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        # The harness: a text that spells out the prefix token gets no second one.
        if add_special_tokens is None and self._prefix and string.startswith(self._prefix):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        with tokenizing("the model's tokenizer cannot encode a request"):
            return tuple(self.tokenizer.encode(string, **options))

    @functools.cached_property
    def _prefix(self) -> str:
        try:
            return str(self.tokenizer.decode(self.prefix_token_id))
        except UnsupportedModel:
            return ""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        """As the harness does, without its progress bar."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.context:
            raise UnsupportedModel(
                f"an answer of {longest} tokens exceeds this model's context of {self.context}; "
                "choose other --tasks"
            )
        self.observer.phase("zeroshot", len(requests))
        began = time.perf_counter()
        found = score_answers(
            self.model,
            [(text, answer) for _, text, answer in requests],
            context=self.context,
            batch_tokens=self.batch_tokens,
            progress=self.observer.step,
        )
        self.seconds += time.perf_counter() - began
        self.requests += len(requests)
        self.cut += found.cut
        self.tokens += found.tokens
        self.computed += found.computed
        self.logits += found.logits
        return list(zip(found.loglikelihoods.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Raises NotImplementedError: perplexity is measured by ``bench.evaluate.perplexity``."""
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Raises NotImplementedError: tasks that generate text are refused by name."""
        raise NotImplementedError
