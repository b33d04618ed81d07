"""Configurations and tokenizers of the packaged models.

Each follows its family closely enough that whatever prunes the family prunes it: OPT with learned
positions, ReLU and norms before the sub-layers; BLOOM with ALiBi over a head count that is no power of two,
an embedding norm and a fused query-key-value; LLaMA with RMSNorm, rotary positions, SwiGLU, grouped queries
and an untied head. Widths are not multiples of 128, so the last column block of a pruning sweep is a short
one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CONTEXT = 256
VOCABULARY = 2048
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
PAD, BOS, EOS = SPECIAL_TOKENS


@dataclass(frozen=True)
class Architecture:
    """One packaged model: transformers' ``model_type``, its settings, and the token its texts begin with.

    ``begins_with`` is "" where the family's tokenizer puts nothing in front of a text (BLOOM). ``dropped``
    names the modules whose outputs are dropped out in training: the embedding and the two projections of a
    block that write the residual stream.
    """

    name: str
    model_type: str
    begins_with: str
    dropped: tuple[str, ...]
    settings: dict[str, Any]

    def build(self) -> PreTrainedModel:
        """A freshly initialised float32 model of these settings; draws from torch's global generator."""
        from transformers import AutoConfig, AutoModelForCausalLM

        named = {"pad_token_id": PAD, "bos_token_id": self.begins_with or BOS, "eos_token_id": EOS}
        special = {key: SPECIAL_TOKENS.index(token) for key, token in named.items()}
        config = AutoConfig.for_model(self.model_type, vocab_size=VOCABULARY, **special, **self.settings)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        return model


ARCHITECTURES = (
    Architecture(
        "nano-opt",
        "opt",
        begins_with=EOS,
        dropped=("embed_tokens", "out_proj", "fc2"),
        settings={
            "hidden_size": 192,
            "word_embed_proj_dim": 192,
            "ffn_dim": 768,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "max_position_embeddings": CONTEXT,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "tie_word_embeddings": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    Architecture(
        "nano-bloom",
        "bloom",
        begins_with="",
        dropped=("word_embeddings_layernorm", "dense", "dense_4h_to_h"),
        settings={
            "hidden_size": 160,
            "n_layer": 6,
            "n_head": 5,
            "seq_length": CONTEXT,
            "tie_word_embeddings": True,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    Architecture(
        "nano-llama",
        "llama",
        begins_with=BOS,
        dropped=("embed_tokens", "o_proj", "down_proj"),
        settings={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False,
            "attention_dropout": 0.0,
        },
    ),
)


def architecture(name: str) -> Architecture:
    """The packaged model called ``name``; KeyError otherwise."""
    return {entry.name: entry for entry in ARCHITECTURES}[name]


def train_tokenizer(texts: Iterable[str], begins_with: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 2,048 tokens trained on ``texts``; encoding puts ``begins_with`` in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if begins_with:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins_with} $A", special_tokens=[(begins_with, tokenizer.token_to_id(begins_with))]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=begins_with or BOS,
        eos_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
