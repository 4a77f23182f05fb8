"""What the families of tokens in one dimension promise beyond parity and the properties of all families."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_published import PARITY, SHORTENED, assert_holds, random_state

import zoo
from tokenizers_visual import instella_t2i, karl, tatitok, titok
from zoo import checkpoint
from zoo.config import ConfigError
from zoo.layers.positions import sine_grid
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
    choose = getattr(family.module, "key_map_from_original", lambda meta: family.module.KEY_MAP)
    meta = json.loads((PARITY / name / "meta.json").read_text())
    model = family.model(family.module.config_from_original(meta)).eval()  # type: ignore[call-arg]
    checkpoint.load_into(model, choose(meta)(checkpoint.read(PARITY / name / "weights.safetensors")))
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


# -- text ------------------------------------------------------------------------------------------------------------


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


# -- roll-outs -------------------------------------------------------------------------------------------------------


def test_alit_gives_each_item_its_number_of_tokens() -> None:
    model = build("alit")
    x = images(3, 16)
    tokens = model.encode(x, num_tokens=[8, 4, 12])
    assert tokens.lengths is not None
    assert tokens.lengths.tolist() == [8, 4, 12]
    decoded = model.decode(Tokens.unpack(tokens.pack()))
    for i, count in enumerate((8, 4, 12)):
        alone = model.encode(x[i : i + 1], num_tokens=count)
        assert torch.equal(alone.indices[0], tokens.indices[i, :count])
        torch.testing.assert_close(model.decode(alone)[0], decoded[i], rtol=1e-4, atol=1e-4)
        assert torch.equal(model.decode(model.tokens(alone.indices)), model.decode(alone))


def test_alit_rows_of_fewer_tokens_are_no_prefixes() -> None:
    model = build("alit")
    tokens = model.encode(images(4, 16))
    assert not torch.equal(model.encode(images(4, 16), num_tokens=4).indices, tokens.indices[:, :4])
    with pytest.raises(ValueError, match="cannot be truncated"):
        tokens.truncate(4)


@pytest.mark.parametrize("num_tokens", [0, 3, 16, "4", [4, 5]])
def test_alit_refuses_numbers_between_roll_outs(num_tokens: Any) -> None:
    with pytest.raises(ValueError, match="expected an integer from 4 to 12 in steps of 4, got"):
        build("alit").encode(images(2, 16), num_tokens=num_tokens)


def test_alit_takes_the_fewest_tokens_of_a_quality() -> None:
    model = build("alit")
    x = images(6, 16)
    errors = torch.stack([(model.decode(model.encode(x, num_tokens=n)) - x).abs().mean((1, 2, 3)) for n in (4, 8, 12)])
    for quality in (0.01, float(errors.quantile(0.5)), 10.0):
        tokens = model.encode(x, quality=quality)
        lengths = [tokens.indices.shape[1]] * 6 if tokens.lengths is None else tokens.lengths.tolist()
        for item, length in enumerate(lengths):
            of_item = errors[:, item].tolist()
            within = [n for n, error in zip((4, 8, 12), of_item) if error < quality]
            assert length == (within[0] if within else (4, 8, 12)[of_item.index(min(of_item))])
    with pytest.raises(ValueError, match="expected num_tokens or quality, got both"):
        model.encode(x, quality=0.1, num_tokens=4)
    with pytest.raises(ValueError, match="expected a mean absolute difference > 0"):
        model.encode(x, quality=-1.0)


# -- halting -----------------------------------------------------------------------------------------------------------


def halting_karl() -> tuple[Any, torch.Tensor]:
    """A model that halts some tokens of the images given with it, not only at the ends of rows."""
    model: Any = build("karl")
    x = images(3, 16)
    with torch.no_grad():
        halting = model.row(x).halting
        model.to_halting[2].bias.add_(1.0986 - halting.median())  # logit of the threshold 0.75
    return model, x


def test_karl_keeps_tokens_with_their_places(tmp_path: Path) -> None:
    model, x = halting_karl()
    with torch.no_grad():
        row = model.row(x)
        kept = ~model.halted(row)
        everything = model.quantizer(row.latent)
        expected = model.reconstruct(everything.codes, kept=kept)
    tokens = model.encode(x)
    assert tokens.extent is not None
    places = tokens.extent.places
    assert places == tuple(tuple(item.nonzero()[:, 0].tolist()) for item in kept)
    assert any(item != tuple(range(len(item))) for item in places)
    for i, item in enumerate(places):
        assert torch.equal(tokens.indices[i, : len(item)], everything.indices[i, list(item)])
    torch.testing.assert_close(model.decode(tokens), expected, rtol=1e-4, atol=1e-4)
    stored = Tokens.unpack(tokens.pack())
    assert stored == tokens
    torch.testing.assert_close(model.decode(stored[1:]), expected[1:], rtol=1e-4, atol=1e-4)
    tokens.save(tmp_path / "tokens.safetensors")
    assert Tokens.load(tmp_path / "tokens.safetensors") == tokens
    joined = Tokens.cat([tokens[:1], tokens[1:]])
    assert torch.equal(joined.indices, tokens.indices)
    assert joined.extent == tokens.extent
    assert tokens.bits == tuple(6 * len(item) + item[-1] + 1 for item in places)


def test_karl_in_half_precision_takes_images_as_they_are() -> None:
    model, x = halting_karl()
    assert model.bfloat16().encode(x) == model.encode(x.bfloat16())


def test_karl_gives_an_item_alone_what_it_has_in_a_batch() -> None:
    model, x = halting_karl()
    together = model.encode(x, num_tokens=[16, 5, 9])
    for i, count in enumerate((16, 5, 9)):
        alone = model.encode(x[i : i + 1], num_tokens=count)
        length = alone.indices.shape[1]
        assert torch.equal(alone.indices[0], together.indices[i, :length])
        assert alone._places()[0] == together._places()[i]
        torch.testing.assert_close(model.decode(alone)[0], model.decode(together)[i], rtol=1e-4, atol=1e-4)


def test_karl_keeps_at_least_one_token() -> None:
    model, x = halting_karl()
    with torch.no_grad():
        model.to_halting[2].bias.add_(50.0)
    tokens = model.encode(x)
    assert tokens.indices.shape == (3, 1)
    assert model.decode(tokens).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "expected an integer from 1 to 20, got 0"),
        ({"num_tokens": 21}, "expected an integer from 1 to 20, got 21"),
        ({"quality": 0.0}, r"expected a mean absolute error > 0, got 0\.0"),
    ],
)
def test_karl_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("karl").encode(images(1, 16), **options)


def test_karl_rounds_a_wanted_error_up() -> None:
    wanted = torch.tensor([0.0, 0.005, 0.0051, 0.31, 0.38, 0.9])
    assert [karl.ERRORS[i] for i in karl.nearest_errors(wanted)] == [0.005, 0.005, 0.01, 0.32, 0.38, 0.38]


# -- images of any size ----------------------------------------------------------------------------------------------


def test_instella_has_as_many_tokens_whatever_the_size() -> None:
    model = build("instella_t2i")
    for sides in ((16, 16), (8, 32), (30, 21)):
        x = torch.rand(2, 3, *sides) * 2 - 1
        tokens = model.encode(x)
        assert tokens.levels[0].shape == (2, 6)
        assert tokens.bits == (6 * 12,) * 2
        assert model.decode(tokens).shape == x.shape
    joined = Tokens.cat([model.encode(torch.zeros(1, 3, side, side)) for side in (16, 32)])
    with pytest.raises(ValueError, match=r"expected items of one size after padding, got \[\(16, 16\), \(32, 32\)\]"):
        model.decode(joined)
    unknown = replace(tokens, extent=None)
    model.config = model.config.replace(decoded_size=24)
    assert model.decode(replace(unknown, source=None)).shape == (2, 3, 24, 24)


@pytest.mark.parametrize("after", [(0,), (1,)], ids=["inside", "at the end"])
def test_instella_gives_the_positions_that_are_wanted_as_among_all(after: tuple[int, ...]) -> None:
    sizes = {"encoder": titok.TransformerSizes(24, 2, 2), "rotary_widths": (4, 4, 4), "halve_after": after}
    encoder = instella_t2i.InstellaT2I(
        instella_t2i.InstellaT2IConfig(**sizes, decoder=sizes["encoder"], double_after=(0,))
    ).encoder
    latents, grid = torch.randn(2, encoder.count, 24), torch.randn(2, 24, 4, 4)
    whole = encoder.mix(latents, grid, None, 0.5, slice(None))
    assert whole.shape == (2, encoder.count + 4, 24)
    for wanted in (slice(encoder.count), slice(encoder.count, None)):
        torch.testing.assert_close(encoder.mix(latents, grid, None, 0.5, wanted), whole[:, wanted])


def test_instella_draws_bits_in_training_alone() -> None:
    model = build("instella_t2i")
    x = images(2, 16)
    first, second = (model.train()(x).quantized.indices for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(x).quantized.indices for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotary_widths": (8, 28, 20)}, "rotary_widths of 64 in all"),
        ({"rotary_widths": (9, 27, 28)}, "even rotary_widths"),
        ({"halve_after": ()}, "1 or 2 blocks of 12"),
        ({"double_after": (16,)}, "1 or 2 blocks of 16"),
        ({"decoded_size": 100}, "decoded_size that is a multiple of 32"),
    ],
)
def test_instella_refuses_sizes_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        instella_t2i.InstellaT2IConfig(**fields)


# -- flow --------------------------------------------------------------------------------------------------------------


def test_flextok_decodes_each_item_by_its_own_seed_and_length() -> None:
    model = build("flextok")
    x = images(3, 16) * 2 - 1
    counts, seeds = [4, 16, 1], [3, 8, 5]
    options = {"steps": 2, "guidance_scale": 3.0}
    together = model.decode(model.encode(x, num_tokens=counts), seed=seeds, **options)
    for i, (count, seed) in enumerate(zip(counts, seeds)):
        tokens = model.encode(x[i : i + 1], num_tokens=count)
        assert tokens == model.encode(x[i : i + 1]).truncate(count)
        alone = model.decode(tokens, seed=seed, **options)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
        assert torch.equal(alone, model.decode(tokens, seed=seed, **options))
        assert not torch.equal(alone, model.decode(tokens, seed=seed + 1, **options))


def test_flextok_guidance_of_one_is_none() -> None:
    model: Any = build("flextok")
    tokens = model.encode(images(1, 16) * 2 - 1)
    codes = model.codes(tokens)
    noise = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        sampled = model.sample(codes, steps=1, guidance_scale=1.0, noise=noise)
        start = noise.movedim(1, -1)
        velocity = model.decoder(start, torch.ones(1), model.decoder.embed(codes))
        torch.testing.assert_close(sampled, start - velocity)
        guided = model.sample(codes, steps=1, guidance_scale=4.0, noise=noise)
    across = ((sampled - guided) * velocity).sum() / velocity.square().sum()
    assert not torch.allclose(sampled, guided, atol=1e-3)
    assert abs(across.item()) < 1e-4  # norm guidance adds what is orthogonal to the velocity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 1.5}, r"steps: expected an integer of at least 1, got 1\.5"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, r"noise: expected \(2, 4, 8, 8\), got \(1, 4, 8, 8\)"),
        ({"seed": [1]}, "seed: expected 2, one for each item, got 1"),
    ],
)
def test_flextok_refuses_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    model = build("flextok")
    with pytest.raises(ValueError, match=message):
        model.decode(model.encode(images(2, 16)), **options)


def test_flextok_positions_are_those_of_the_published_files() -> None:
    for name in ("flextok", "flextok__shared_adaln"):
        weights = checkpoint.read(PARITY / name / "weights.safetensors")
        for key in ("encoder.module_dict.enc_posemb_module", "decoder.module_dict.dec_patches_posemb_module"):
            table = weights[f"{key}.posembs"]
            torch.testing.assert_close(sine_grid(table.shape[1], 4), table)


def test_flextok_tokens_do_not_depend_on_later_ones() -> None:
    model: Any = build("flextok")
    x = images(1, 16) * 2 - 1
    with torch.no_grad():
        before = model.latent(x)
        model.encoder.registers[9:] += torch.randn_like(model.encoder.registers[9:])
        after = model.latent(x)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-2)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key_list", "name"),
    [
        ("alit/keys_alit_small_vqgan", "alit_small_vqgan_quantised.in100"),
        ("alit/keys_alit_small_vae", "alit_small_vae_quantised.in100"),
        ("karl/keys_karl_small_vqgan", "karl_small_vqgan_quantised.in1k"),
        ("karl/keys_karl_small_vae", "karl_small_vae_quantised.in100"),
    ],
)
def test_training_file_of_the_published_layout_loads(tmp_path: Path, key_list: str, name: str) -> None:
    state = random_state(key_list)
    path = tmp_path / "published.pth"
    others = {"gan_losses.0.discriminator.main.0.weight": torch.zeros(4)}
    torch.save({"ema": state | others, "model": {}, "epoch": 3}, path)
    model = zoo.create_model(name, checkpoint=path)
    assert_holds(model, state)
    tokens = model.encode(images(1, 256), num_tokens=32)
    assert tokens.levels[0].shape[1] <= 32
    assert model.decode(tokens).shape == (1, 3, 256, 256)


@pytest.mark.slow
def test_instella_file_loads(tmp_path: Path) -> None:
    state = random_state("instella_t2i/keys_instella_bae_config")
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    model = zoo.create_model("instella_t2i_bae", checkpoint=path)
    assert_holds(model, state)
    tokens = model.encode(torch.zeros(1, 3, 64, 96))
    assert tokens.bits == (128 * 64,)
    assert model.decode(tokens).shape == (1, 3, 64, 96)


@pytest.mark.slow
def test_flextok_file_loads(tmp_path: Path) -> None:
    key_list = "flextok/keys_flextok_d12_d12_inferred"
    state = random_state(key_list)
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    model = zoo.create_model("flextok_d12_d12", checkpoint=path, **SHORTENED[key_list])
    assert_holds(model, state)
    tokens = model.encode(images(1, 256), num_tokens=5)
    assert tokens.bits == (5 * 16,)
    assert model.decode(tokens, steps=1).shape == (1, 3, 256, 256)


def test_file_with_the_running_use_of_codes_loads() -> None:
    state = checkpoint.read(PARITY / "tatitok" / "weights.safetensors")
    assert "quantize.embed_prob" in state
    mapped = tatitok.KEY_MAP(state)
    assert not any("pull" in key for key in mapped)
    assert mapped["empty_text"].shape == (10, 20)
    assert torch.equal(tatitok.KEY_MAP_TRAINING(state)["quantizer.pull.share"], state["quantize.embed_prob"])


@pytest.mark.parametrize("fixture", ["alit", "karl"])
def test_what_is_not_stated_is_at_the_originals_defaults(fixture: str) -> None:
    meta = json.loads((PARITY / fixture / "meta.json").read_text())
    module, kwargs = registry.family(fixture).module, meta["original"]["kwargs"]
    defaults = {
        "quantize_latent": True, "vq_codebook_size": 4096, "vq_token_dim": 12, "vq_use_l2_norm": True, "img_size": 256,
        "num_init_latent_tokens": 32, "max_rollout_iters": 8, "dynamic_halting": True,
        "dynamic_halting_threshold": 0.55, "max_grid_tokens": 64,
    }  # fmt: skip
    meta["original"]["kwargs"] = kwargs | defaults
    stated = module.config_from_original(meta)
    meta["original"]["kwargs"] = {name: value for name, value in kwargs.items() if name not in defaults}
    assert module.config_from_original(meta) == stated


def test_hooks_on_alits_blocks_see_every_rollout() -> None:
    model, seen = build("alit"), list[torch.Size]()
    model.encoder.blocks.register_forward_hook(lambda layer, given, found: seen.append(found.shape))
    model.encode(images(2, 16))
    assert len(seen) == model.config.rollouts
