"""What the families of tokens in one dimension promise beyond parity and the properties of all families."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_published import PARITY, assert_holds, random_state

import zoo
from tokenizers_visual import tatitok, titok
from zoo import checkpoint
from zoo.config import ConfigError
from zoo.layers.posterior import Posterior
from zoo.quantizers import DimensionWiseConfig, VectorConfig
from zoo.registry import registry
from zoo.tokens import Tokens

SIZES = titok.TransformerSizes(width=8, layers=1, heads=2)
PIXELS: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "num_tokens": 3, "encoder": SIZES, "decoder": SIZES, "proxy": None,
    "quantizer": VectorConfig(16, 4),
}  # fmt: skip


def build(name: str) -> zoo.Tokenizer:
    """The model of a fixture."""
    family = registry.family(name, f"tokenizers_visual.{name}")
    meta = json.loads((PARITY / name / "meta.json").read_text())
    model = family.model(family.module.config_from_original(meta)).eval()  # type: ignore[call-arg]
    checkpoint.load_into(
        model, family.module.key_map_from_original(meta)(checkpoint.read(PARITY / name / "weights.safetensors"))
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key == "empty_text":
                parameter.normal_()
    return model


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# -- prefixes --------------------------------------------------------------------------------------------------------


def test_one_d_piece_gives_each_item_its_number_of_tokens() -> None:
    model = build("one_d_piece")
    x = images(3, 16)
    whole = model.encode(x)
    tokens = model.encode(x, num_tokens=[5, 1, 16])
    assert tokens.lengths is not None
    assert tokens.lengths.tolist() == [5, 1, 16]
    assert tokens.bits == tuple(6 * count for count in (5, 1, 16))
    for i, count in enumerate((5, 1, 16)):
        alone = model.encode(x[i : i + 1], num_tokens=count)
        assert torch.equal(alone.indices, whole.indices[i : i + 1, :count])
        assert torch.equal(alone.indices[0], tokens.indices[i, :count])
    assert Tokens.unpack(tokens.pack()) == tokens


def test_one_d_piece_decodes_items_of_different_lengths_as_each_alone() -> None:
    model = build("one_d_piece")
    x = images(3, 16)
    counts = [5, 1, 16]
    together = model.decode(model.encode(x, num_tokens=counts))
    for i, count in enumerate(counts):
        alone = model.decode(model.encode(x[i : i + 1], num_tokens=count))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], model.decode(model.encode(x[:1]))[0], atol=1e-3)


def test_one_d_piece_prefix_is_the_truncation() -> None:
    model = build("one_d_piece")
    x = images(2, 16)
    short = model.encode(x, num_tokens=4)
    assert model.encode(x).truncate(4) == short
    assert torch.equal(model.decode(model.tokens(short.indices)), model.decode(short))


@pytest.mark.parametrize(
    ("num_tokens", "message"),
    [
        (0, "expected an integer from 1 to 16, got 0"),
        (17, "expected an integer from 1 to 16, got 17"),
        (True, "expected an integer from 1 to 16, got True"),
        (2.0, r"expected an integer from 1 to 16, got 2\.0"),
        ([1, 2, 3], "expected one number for each of 2 items, got 3"),
        ([1, 0], "expected an integer from 1 to 16, got 0"),
    ],
)
def test_wrong_numbers_of_tokens_are_refused(num_tokens: Any, message: str) -> None:
    model = build("one_d_piece")
    with pytest.raises(ValueError, match=message):
        model.encode(images(2, 16), num_tokens=num_tokens)


def test_one_d_piece_drops_tails_in_training_alone() -> None:
    model = build("one_d_piece")
    codes = model.codes(model.encode(images(1, 16)))
    with torch.no_grad():
        prefixes = [model.reconstruct(codes[:, :count]) for count in range(1, 17)]
        torch.manual_seed(0)
        model.train()
        drawn = [model.reconstruct(codes) for _ in range(200)]
    found = {next(k for k, image in enumerate(prefixes, 1) if torch.equal(image, one)) for one in drawn}
    assert found == set(range(1, 17))


@pytest.mark.parametrize("name", ["titok", "tatitok"])
def test_prefixes_of_other_rows_are_refused(name: str) -> None:
    model = build(name)
    tokens = model.encode(images(2, 16))
    with pytest.raises(ValueError, match="does not take num_tokens"):
        model.encode(images(2, 16), num_tokens=2)
    with pytest.raises(ValueError, match="cannot be truncated"):
        tokens.truncate(2)
    foreign = replace(tokens, levels=(tokens.indices[:, :2],), source=None)
    with pytest.raises(ValueError, match="expected 8 tokens, got 2"):
        model.decode(foreign)


# -- variational models ------------------------------------------------------------------------------------------------


def test_a_variational_model_encodes_its_means_and_samples_in_training() -> None:
    config = titok.TiTokConfig(**{**PIXELS, "variational": True, "quantizer": DimensionWiseConfig(4)})
    torch.manual_seed(0)
    model = titok.TiTok(config).eval()
    x = images(2, 8)
    with torch.no_grad():
        assert torch.equal(model.latent(x), model.posterior(x).mean)
        drawn = torch.stack([model.train().latent(x) for _ in range(3000)])
        posterior = model.posterior(x)
    torch.testing.assert_close(drawn.mean(0), posterior.mean, rtol=0.0, atol=0.1)
    torch.testing.assert_close(drawn.std(0), (posterior.log_variance / 2).exp(), rtol=0.1, atol=0.0)
    assert model.eval().encode(x).indices.shape == (2, 4, 3)  # a level for every dimension


def test_posterior_divergence_is_that_of_two_normal_variables() -> None:
    parameters = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    posterior = Posterior.of(parameters)
    normal = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.divergence(), expected)
    assert Posterior.of(torch.tensor([0.0, 99.0])).log_variance.item() == 20


def test_a_model_without_posterior_or_proxy_says_so() -> None:
    model = titok.TiTok(titok.TiTokConfig(**PIXELS)).eval()
    with pytest.raises(ValueError, match="expected a config with variational=True"):
        model.posterior(images(1, 8))
    with pytest.raises(ValueError, match="expected a config with a proxy"):
        model.proxy_logits(torch.zeros(1, 3, 4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 10}, "multiple of patch_size"),
        ({"num_tokens": 0}, "num_tokens >= 1"),
        ({"proxy": titok.ProxyConfig(channel_multipliers=(1, 1))}, "levels of the proxy for patch_size 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        titok.TiTokConfig(**{**PIXELS, **fields})


# -- text ----------------------------------------------------------------------------------------------------------------


def test_text_changes_the_image_and_no_text_stands_for_the_empty_one() -> None:
    model = build("tatitok")
    x = images(2, 16)
    tokens = model.encode(x)
    text = torch.randn(2, 10, 20, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model.decode(tokens, text=text), model.decode(tokens), atol=1e-3)
    empty = model.state_dict()["empty_text"].expand(2, -1, -1)
    torch.testing.assert_close(model.decode(tokens, text=empty), model.decode(tokens))
    with torch.no_grad():
        torch.testing.assert_close(model(x, text).reconstruction, model.decode(tokens, text=text))


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (torch.zeros(2, 10, 21), r"float32 \(2, 10, 21\)"),
        (torch.zeros(2, 9, 20), r"float32 \(2, 9, 20\)"),
        (torch.zeros(1, 10, 20), r"float32 \(1, 10, 20\)"),
        (torch.zeros(2, 10, 20, dtype=torch.int64), r"int64 \(2, 10, 20\)"),
        ("a dog", "str"),
    ],
)
def test_text_of_another_shape_is_refused(text: Any, got: str) -> None:
    model = build("tatitok")
    tokens = model.encode(images(2, 16))
    with pytest.raises(ValueError, match=rf"text: expected floating point features \(2, 10, 20\), got .*{got}"):
        model.decode(tokens, text=text)


def test_text_aware_models_have_no_proxy() -> None:
    with pytest.raises(ConfigError, match="no proxy"):
        tatitok.TATiTokConfig(proxy=titok.ProxyConfig())


# -- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_list", "name"),
    [
        ("titok/keys_titok_s128", "titok_s128"),
        pytest.param("titok/keys_titok_l32", "titok_l32", marks=pytest.mark.slow),
        pytest.param("titok/keys_titok_bl64_vq8k", "titok_bl64_vq8k", marks=pytest.mark.slow),
        pytest.param("titok_vae/keys_titok_bl128_vae_c16", "titok_bl128_vae_c16", marks=pytest.mark.slow),
        pytest.param("one_d_piece/keys_one_d_piece_s256", "one_d_piece_s256", marks=pytest.mark.slow),
        pytest.param("one_d_piece/keys_one_d_piece_l256", "one_d_piece_l256", marks=pytest.mark.slow),
        pytest.param("tatitok/keys_tatitok_bl128_vq", "tatitok_bl128_vq", marks=pytest.mark.slow),
        pytest.param("tatitok/keys_tatitok_bl32_vae", "tatitok_bl32_vae", marks=pytest.mark.slow),
    ],
)
def test_file_of_the_published_layout_loads(tmp_path: Path, key_list: str, name: str) -> None:
    state = random_state(key_list)
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    model = zoo.create_model(name, checkpoint=path)
    assert_holds(model, state)
    tokens = model.encode(images(1, 256))
    assert tokens.levels[0].shape == (1, model.config.num_tokens)  # type: ignore[attr-defined]
    assert model.decode(tokens).shape == (1, 3, 256, 256)


def test_file_with_the_running_use_of_codes_loads() -> None:
    state = checkpoint.read(PARITY / "tatitok" / "weights.safetensors")
    assert "quantize.embed_prob" in state
    mapped = tatitok.KEY_MAP(state)
    assert not any("pull" in key for key in mapped)
    assert mapped["empty_text"].shape == (10, 20)
    assert torch.equal(tatitok.KEY_MAP_TRAINING(state)["quantizer.pull.share"], state["quantize.embed_prob"])
