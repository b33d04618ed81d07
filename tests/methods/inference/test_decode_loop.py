"""The decode loop, a token at a time, against whole forward passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruned_nanos import NANOS, PROMPT, pruned
from saved_models import saved
from sliced_models import FAMILIES, sliced, streamed

from bench.measure.decode import Loop
from methods.inference.assemble import assemble
from methods.inference.cache import BlockCache
from methods.inference.decode_loop import Session, forced_logits
from methods.inference.served import Served, serve, serve_model
from methods.kernels import decode
from methods.stream.source import CheckpointSource

_TOKENS = torch.randint(3, 101, (1, 30), generator=torch.Generator().manual_seed(11))


@torch.inference_mode()
def _stepped(model: Served, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Logits behind every token from ``first`` on: those before it at once, then one by one."""
    session = Session(model, tokens.shape[1])
    found = [session.feed(tokens[:, :first])]
    found += [session.feed(tokens[:, place : place + 1]) for place in range(first, tokens.shape[1])]
    assert session.length == tokens.shape[1]
    return torch.stack(found)


@pytest.mark.parametrize("first", [1, 12])
@pytest.mark.parametrize("name", NANOS)
def test_steps_equal_a_whole_pass_dense_and_packed(tmp_path: Path, name: str, first: int) -> None:
    source = pruned(name, tmp_path)
    whole = streamed(source, PROMPT)[0, first - 1 :]
    dense, packed = serve(source), serve(source, format="bitmap")
    assert packed.swap.packed == source.shape.blocks * len(source.family.matrices(source.shape))
    for model in (dense, packed):
        torch.testing.assert_close(_stepped(model, PROMPT, first), whole, rtol=0, atol=2e-4)
    assert packed.nbytes < 0.7 * dense.nbytes
    assert dense.nbytes == sum(weight.nbytes for weight in assemble(source).parameters())


@pytest.mark.parametrize(
    ("family", "changes", "fused"),
    [
        ("opt", {"enable_bias": False}, True),
        ("opt", {"layer_norm_elementwise_affine": False, "activation_function": "gelu"}, True),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, False),
        ("opt", {"activation_function": "tanh"}, False),
        ("bloom", {}, True),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, False),
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"}, True),
        ("llama", {"num_key_value_heads": 1, "head_dim": 10}, True),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, True),
    ],
    ids=str,
)
def test_every_variant_is_decoded(
    tmp_path: Path, family: str, changes: dict[str, object], fused: bool
) -> None:
    source = CheckpointSource(saved(tmp_path / "model", family, **changes))
    whole = streamed(source, _TOKENS)[0, 9:]
    model = serve(source)
    assert (Session(model, 9)._step is not None) is (fused and decode.available())
    torch.testing.assert_close(_stepped(model, _TOKENS, 10), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NANOS)
def test_a_native_step_is_the_stages(
    tmp_path: Path, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pruned(name, tmp_path, dtype=dtype)
    model = serve(source, format="bitmap")
    fused = _stepped(model, PROMPT, 5)
    monkeypatch.setattr(decode, "available", lambda: False)
    by_stages = _stepped(model, PROMPT, 5)
    allowed = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(fused, by_stages, rtol=0, atol=allowed)
    exact = streamed(pruned(name, tmp_path / "wide", dtype=torch.float64), PROMPT)[0, 4:]
    distance = [float((logits.double() - exact).square().mean()) for logits in (fused, by_stages)]
    assert distance[0] < 1.5 * distance[1] + 1e-9  # float32 between the products, whatever the weights are


@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_models_are_decoded(tmp_path: Path, family: str) -> None:
    _, source = sliced(saved(tmp_path / "model", family), tmp_path / "sliced")
    whole = streamed(source, _TOKENS)[0, 9:]
    for model in (serve(source), serve_model(assemble(source), source)):
        torch.testing.assert_close(_stepped(model, _TOKENS, 10), whole, rtol=0, atol=4e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_model_shares_the_assembled_ones_memory(tmp_path: Path, family: str) -> None:
    source = CheckpointSource(saved(tmp_path / "model", family))
    model = assemble(source)
    before = model(_TOKENS).logits
    served = serve_model(model, source)
    assert torch.equal(model(_TOKENS).logits, before)
    held = {
        product.weight.untyped_storage().data_ptr() for block in served.blocks for product in block.products()
    }
    name = f"{source.family.block_prefix(1)}{source.family.matrices(source.shape)[0].name}.weight"
    assert model.get_parameter(name).untyped_storage().data_ptr() in held


def test_forced_logits_and_greedy_tokens_belong_together(tmp_path: Path) -> None:
    source = CheckpointSource(saved(tmp_path / "model", "llama"))
    model = serve(source)
    tokens = Loop(model, _TOKENS[:, :20], 11).run().tokens
    logits = forced_logits(model, _TOKENS[:, :20], tokens)
    assert torch.equal(logits.argmax(1), tokens) and logits.shape == (11, source.shape.vocabulary)


def test_caches_say_what_does_not_fit(tmp_path: Path) -> None:
    cache = BlockCache(2, 4, 8, dtype=torch.float32, device=torch.device("cpu"))
    assert cache.nbytes == 2 * 2 * 4 * 8 * 4
    three = torch.ones(1, 2, 3, 8)
    assert [part.shape[2] for part in cache.extend(three, three)] == [3, 3]
    with pytest.raises(ValueError, match="a cache of 4 tokens holds 3: 3 more do not fit"):
        cache.extend(three, three)
    cache.length = 1
    with pytest.raises(ValueError, match="3 tokens after 1 cached ones: go on one token at a time"):
        cache.extend(three, three)
    source = CheckpointSource(saved(tmp_path / "model", "opt"))
    with pytest.raises(ValueError, match=r"a capacity of 100000 tokens: pass 1 to \d+, the model's context"):
        Session(serve(source), 100_000)
