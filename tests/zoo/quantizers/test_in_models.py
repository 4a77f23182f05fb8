"""Every registered quantizer in an architecture: encode, pack, unpack, decode, and prefixes where it has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import zoo
from zoo.quantizers import QUANTIZERS, QuantizerConfig
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

SMALL = {
    "patch_size": 2, "fine_channels": 8, "channels": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1),
}  # fmt: skip
# smaller than the defaults, so that a test is quick; a name that is missing here takes its defaults
FIELDS: dict[str, dict[str, Any]] = {
    "vector": {"codebook_size": 30, "dim": 6},
    "residual": {"level": {"kind": "vector", "codebook_size": 30, "dim": 6}, "num_levels": 3},
    "grouped": {"group": {"kind": "vector", "codebook_size": 30, "dim": 3}, "num_groups": 2},
    "summed": {"parts": [{"kind": "vector", "codebook_size": n, "dim": 6} for n in (30, 20)]},
    "implicit_neural": {"codebook_size": 30, "dim": 6, "num_levels": 3, "hidden": 8},
    "multi_scale": {"level": {"kind": "vector", "codebook_size": 30, "dim": 6}, "ladder": [1, 2, 3, 6]},
}
KINDS = {name: config for name, config in QUANTIZERS.items() if name == config.kind}


def build(name: str, **fields: Any) -> Tokenizer:
    torch.manual_seed(0)
    model = zoo.create_model(
        "compact_f8", pretrained=False, **SMALL, quantizer=name, **(fields or FIELDS.get(name, {}))
    )
    for level in model.quantizer.modules():  # spread the codes, so that images differ in their tokens
        if isinstance(getattr(level, "codebook", None), torch.nn.Module):
            torch.nn.init.normal_(level.codebook.weight)  # type: ignore[union-attr, arg-type]
        for codebook in getattr(level, "codebooks", ()):
            torch.nn.init.normal_(codebook)
    return model


def images(height: int = 22, width: int = 13, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", KINDS)
def test_encode_pack_unpack_decode(name: str) -> None:
    model, x = build(name), images()
    tokens = model.encode(x)
    assert tokens.vocab_sizes == model.vocab_sizes
    assert [tuple(level.shape[1:]) for level in tokens.levels] == list(model.token_shapes((24, 16)))
    assert tokens.layout == ("scales" if model.quantizer.config.scales else "grid")
    again = Tokens.unpack(tokens.pack())
    assert again == tokens
    decoded = model.decode(again)
    assert decoded.shape == x.shape
    with torch.no_grad():
        torch.testing.assert_close(decoded, model(x).reconstruction)
    codes = model.codes(tokens)
    assert codes.shape == (2, 6, 4, model.quantizer.config.dim)
    bits = sum(
        math.prod(level.shape[1:]) * (size - 1).bit_length() for level, size in zip(tokens.levels, tokens.vocab_sizes)
    )
    assert tokens.bits == (bits,) * 2


@pytest.mark.parametrize("name", KINDS)
def test_integers_alone_become_the_same_tokens(name: str) -> None:
    model = build(name)
    tokens = model.encode(images())
    assert model.tokens(tokens.indices, extent=(22, 13)) == tokens
    assert model.tokens(tokens.flatten("level"), extent=(22, 13), order="level") == tokens


@pytest.mark.parametrize("name", KINDS)
def test_an_item_alone_and_twice_gives_the_same_tokens(name: str) -> None:
    model, x = build(name), images(count=3)
    tokens = model.encode(x)
    assert model.encode(x) == tokens
    for b in range(3):
        assert model.encode(x[b : b + 1]) == tokens[b]


@pytest.mark.parametrize("name", KINDS)
def test_first_levels_where_they_are_a_coarser_image(name: str) -> None:
    model, x = build(name), images()
    tokens = model.encode(x)
    if not model.quantizer.config.prefix:
        with pytest.raises(ValueError, match="does not take num_codebooks"):
            model.encode(x, num_codebooks=1)
        with pytest.raises(ValueError, match="cannot be truncated"):
            tokens.truncate(1)
        return
    for k in range(1, len(tokens.levels) + 1):
        first = model.encode(x, num_codebooks=k)
        assert first == tokens.truncate(k)
        assert model.decode(Tokens.unpack(first.pack())).shape == x.shape
        assert model.codes(first).shape == model.codes(tokens).shape
    assert not torch.equal(model.codes(tokens.truncate(1)), model.codes(tokens))
    for wrong in (0, len(tokens.levels) + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {len(tokens.levels)}, got {wrong}"):
            model.encode(x, num_codebooks=wrong)


@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_moves_the_model(name: str) -> None:
    model = build(name).train()
    output = model(images())
    loss = output.reconstruction.square().mean() + sum(output.quantized.losses.values())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    encoder = [parameter.grad for parameter in model.encoder.parameters()]  # type: ignore[union-attr]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in encoder)
    assert any(bool(gradient.any()) for gradient in encoder)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["residual", "grouped", "multi_scale"])
def test_a_saved_model_is_built_again_from_its_file(name: str, tmp_path: Any) -> None:
    model, x = build(name), images()
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert again.config == model.config
    assert again.encode(x) == model.encode(x)
    assert again.card is not None
    assert again.card.quantizer == name


def test_audio_style_residual_levels_through_a_config() -> None:
    """DAC's: each level projects to a few dimensions, where the nearest code is that of the largest cosine."""
    from zoo.quantizers import ProjectedConfig, ResidualConfig, VectorConfig

    level: QuantizerConfig = ProjectedConfig(16, VectorConfig(codebook_size=30, dim=4, metric="cosine"))
    config = ResidualConfig(level, num_levels=3, gradient="through")
    model = zoo.create_model("compact_f8", pretrained=False, **SMALL, quantizer=config)  # type: ignore[arg-type]
    tokens = model.encode(images())
    assert tokens.vocab_sizes == (30,) * 3
    assert model.decode(tokens.truncate(2)).shape == (2, 3, 22, 13)
