"""4M: sampling of the diffusion decoder, positions of other sizes, and the codebook that follows directions."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tokenizers_visual import four_m, four_m_vector
from tokenizers_visual.four_m import FourMConfig
from tokenizers_visual.four_m_vector import FourMVectorConfig
from zoo import cards
from zoo.checkpoint import load_into
from zoo.config import ConfigError
from zoo.quantizers import DirectionCodebookConfig, VectorConfig
from zoo.registry import registry
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def model() -> four_m.FourM:
    folder = PARITY / "fourm_vq__divae"
    built = four_m.FourM(four_m.config_from_original(json.loads((folder / "meta.json").read_text())))
    load_into(built, four_m.KEY_MAP(load_file(folder / "weights.safetensors")))
    return built.eval()


@pytest.fixture(scope="module")
def tokens(model: four_m.FourM) -> Tokens:
    return model.encode(torch.rand(3, 3, 32, 40) * 2 - 1)


def test_decoding_is_the_same_alone_in_any_batch_and_twice(model: four_m.FourM, tokens: Tokens) -> None:
    together = model.decode(tokens, steps=3)
    assert together.shape == (3, 3, 32, 40)
    torch.testing.assert_close(model.decode(tokens, steps=3), together)
    torch.testing.assert_close(model.decode(tokens[1:2], steps=3), together[1:2])
    torch.testing.assert_close(model.decode(tokens, steps=3, seed=0), together)


def test_seeds_are_of_the_items(model: four_m.FourM, tokens: Tokens) -> None:
    one, other = (model.decode(tokens, steps=2, seed=seed) for seed in (1, 2))
    mixed = model.decode(tokens, steps=2, seed=[1, 2, 1])
    torch.testing.assert_close(mixed, torch.stack([one[0], other[1], one[2]]))
    assert not torch.allclose(one, other)


def test_noise_is_where_sampling_starts(model: four_m.FourM, tokens: Tokens) -> None:
    noise = torch.randn(3, 3, 32, 40)
    given = model.decode(tokens, steps=2, noise=noise)
    torch.testing.assert_close(model.decode(tokens[:1], steps=2, noise=noise[:1]), given[:1])


def test_sampling_in_half_precision_stays_near(model: four_m.FourM, tokens: Tokens) -> None:
    expected = model.decode(tokens, steps=3)
    half = copy.deepcopy(model).to(torch.bfloat16)
    got = half.decode(half.tokens(tokens.indices, extent=(32, 40)), steps=3)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).abs().mean() < 0.05


def test_options_that_do_not_fit_are_refused(model: four_m.FourM, tokens: Tokens) -> None:
    with pytest.raises(ValueError, match=r"steps: expected 1 to 1000, got 0"):
        model.decode(tokens, steps=0)
    with pytest.raises(ValueError, match=r"noise: expected \(3, 3, 32, 40\), got \(3, 3, 32, 32\)"):
        model.decode(tokens, noise=torch.zeros(3, 3, 32, 32))
    with pytest.raises(ValueError, match=r"seed: expected 3, one for each item, got 2"):
        model.decode(tokens, seed=[1, 2])
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        four_m.DiffusionConfig(prediction="epsilon")


def test_a_transformer_takes_no_sampling_options() -> None:
    config = four_m.FourMConfig(
        image_size=16,
        patch_size=8,
        encoder=four_m.TransformerConfig(16, 1, 2),
        decoder=four_m.TransformerConfig(16, 1, 2),
        quantizer=VectorConfig(8, 4),
    )
    built = four_m.FourM(config).eval()
    tokens = built.encode(torch.zeros(1, 3, 16, 24))
    assert tokens.indices.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="does not take steps"):
        built.decode(tokens, steps=2)


def test_codes_move_towards_the_direction_of_their_latents() -> None:
    rule = DirectionCodebookConfig(decay=0.75)
    quantizer = VectorConfig(4, 3, metric="cosine", unit_vectors=False, codebook=rule).build().train()
    table = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [-3.0, 0.0, 0.0]])
    with torch.no_grad():
        quantizer.codebook.weight.copy_(table)
    z = torch.tensor([[[5.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.1, 0.2, 4.0]]])
    quantized = quantizer(z)
    assert quantized.indices.tolist() == [[0, 0, 2]]
    torch.testing.assert_close(quantized.codes.detach(), table[[0, 0, 2]][None])  # as stored, not normalised
    torch.testing.assert_close(quantized.losses["commitment"], F.mse_loss(z, table[[0, 0, 2]][None]))
    unit = F.normalize(z[0], dim=-1)
    towards = torch.stack([unit[0] + unit[1], table[1], unit[2], table[3]])
    expected = 0.75 * table + 0.25 * F.normalize(towards, dim=-1)
    torch.testing.assert_close(quantizer.codebook.weight.detach(), expected)
    torch.testing.assert_close(quantizer.ema.count, torch.tensor([1.25, 0.75, 1.0, 0.75]))


def test_directions_need_the_cosine_metric() -> None:
    with pytest.raises(ConfigError, match="cosine"):
        VectorConfig(4, 3, codebook=DirectionCodebookConfig())


def test_unit_latents_are_normalised_before_the_quantizer() -> None:
    sizes = four_m.TransformerConfig(16, 1, 2)
    config = four_m.FourMConfig(
        image_size=16, patch_size=8, encoder=sizes, decoder=sizes, unit_latents=True, quantizer=VectorConfig(8, 4)
    )
    latent = four_m.FourM(config).latent(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(latent.norm(dim=-1), torch.ones(2, 2, 2))


@pytest.mark.parametrize("name", sorted(card.name for card in cards.all_cards() if card.family == "four_m"))
def test_every_published_size_builds_and_fits_the_names_of_its_kind(name: str) -> None:
    """All of them have the names of the two files whose names are known, at sizes of their own."""
    card = registry.card(name)
    config = FourMConfig.from_dict(card.config)
    with torch.device("meta"):
        model = four_m.FourM(config)
    diffusion = isinstance(config.decoder, four_m.DiffusionConfig)
    listed = "keys_divae_rgb_16k_224" if diffusion else "keys_vqvae_clip_b16_8k_224"
    published = json.loads((PARITY / "fourm_vq" / f"{listed}.json").read_text())
    if config.classes is not None:
        published["cls_emb.weight"] = [config.classes, config.in_channels]
    if not diffusion and config.decoder.convolutions:
        block = (
            "gamma",
            *(f"{part}.{kind}" for part in ("dwconv", "norm", "pwconv1", "pwconv2") for kind in ("weight", "bias")),
        )
        published |= {f"decoder.out_conv.{i}.{name}": [1] for i in range(2) for name in block}
    names = four_m.KEY_MAP({key: torch.empty(shape, device="meta") for key, shape in published.items()})
    assert set(names) == set(model.state_dict())
    assert model.state_dict()["encoder.positions"].shape[-1] == config.image_size // config.patch_size
    sizes = {"16k": 16384, "8k": 8192, "4k": 4096, "1k": 1024}
    assert model.vocab_sizes == (sizes[card.tag.partition("_")[0]],)


def test_maps_of_class_ids_come_back_as_class_ids() -> None:
    sizes = four_m.TransformerConfig(16, 1, 2)
    config = four_m.FourMConfig(
        in_channels=4, classes=7, value_range=(0.0, 6.0), image_size=16, patch_size=8, encoder=sizes, decoder=sizes,
        quantizer=VectorConfig(8, 4),
    )  # fmt: skip
    model = four_m.FourM(config).eval()
    classes = torch.randint(7, (2, 1, 19, 24)).float()
    decoded = model.decode(model.encode(classes))
    assert decoded.shape == classes.shape
    assert set(decoded.unique().tolist()) <= set(range(7))
    logits = model(classes).reconstruction
    assert logits.shape == (2, 7, 19, 24)
    assert torch.equal(logits.argmax(1, keepdim=True).float(), decoded)
    with pytest.raises(ValueError, match="values in"):
        model.encode(classes + 1)


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"value_range of \(0.0, 6.0\) for 7 classes"):
        four_m.FourMConfig(classes=7, decoder=four_m.TransformerConfig())
    with pytest.raises(ConfigError, match="transformer as decoder"):
        four_m.FourMConfig(classes=7, value_range=(0.0, 6.0))


def published_vector_shapes(config: FourMVectorConfig) -> dict[str, tuple[int, ...]]:
    """What the original's modules hold: MLPs of `block_dims`, 1x1 convolutions, and stacked memories."""
    width, inner, dim = config.width, config.expansion * config.width, config.quantizer.dim
    heads, codebook_size = len(config.quantizer.vocab_sizes), config.quantizer.vocab_sizes[0]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, *window: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, *window), (outputs,)

    for side, given, made in (("encoder", config.in_channels, width), ("decoder", width, config.in_channels)):
        linear(f"{side}.linear_in", given, width)
        linear(f"{side}.linear_out", width, made)
        for i in range(config.blocks):
            linear(f"{side}.blocks.{i}.block.0", width, inner)
            linear(f"{side}.blocks.{i}.block.2", inner, width)
            shapes |= {f"{side}.layernorms.{i}.{kind}": (width,) for kind in ("weight", "bias")}
    linear("quant_proj", width, dim, 1, 1)
    linear("post_quant_proj", dim, width, 1, 1)
    shapes["quantize.codes"] = (heads, codebook_size, dim // heads)
    return shapes | {f"quantize.{name}.weight": (heads, dim // heads, dim // heads) for name in ("to_k", "to_v")}


@pytest.mark.parametrize("name", sorted(card.name for card in cards.all_cards() if card.family == "four_m_vector"))
def test_every_published_vector_tokenizer_has_the_shapes_of_the_original(name: str) -> None:
    card = registry.card(name)
    config = FourMVectorConfig.from_dict(card.config)
    with torch.device("meta"):
        model = four_m_vector.FourMVector(config)
        published = {key: torch.empty(shape) for key, shape in published_vector_shapes(config).items()}
    found = {key: value.shape for key, value in four_m_vector.KEY_MAP(published).items()}
    assert found == {key: value.shape for key, value in model.state_dict().items()}
    assert model.vocab_sizes == {"8k_16_224": (8192,) * 16, "1k_8": (1024,) * 8}[card.tag]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_type": "lucid"}, "expected memcodes"),
        ({"dec_type": "BottleneckMLP/B_3-Wi_12"}, "of one size"),
        ({"num_codebooks": 5}, "that num_codebooks divides"),
    ],
)
def test_other_arguments_of_vector_tokenizers_are_refused(change: dict[str, object], message: str) -> None:
    meta = json.loads((PARITY / "fourm_vector" / "meta.json").read_text())
    meta["original"]["kwargs"] |= change
    with pytest.raises(ValueError, match=message):
        four_m_vector.config_from_original(meta)
