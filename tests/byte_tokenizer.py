"""A tokenizer of one token a byte, so that tests can count and read tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(begins_with: str = "") -> PreTrainedTokenizerFast:
    """Token ids 1-256 are bytes; id 0 is special, in front of every text where ``begins_with`` is given."""
    special = begins_with or "<s>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({special: 0} | {c: i for i, c in enumerate(alphabet, start=1)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if begins_with:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{special} $A", special_tokens=[(special, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special, model_max_length=16)
