"""BrainTokenizer: any sensors, windows that are independent, the published names and shapes."""

import json
from pathlib import Path

import pytest
import torch
from test_published_codecs import assert_full_size_matches, published_shapes

import zoo
from audio.brainomni import KEY_MAP, TEN_TWENTY, BrainOmni, Sensor, config_from_original, placed, scaled
from zoo import checkpoint
from zoo.config import ConfigError
from zoo.registry import registry

PARITY = Path(__file__).parents[1] / "parity"
KEYS = "brainomni/keys_braintokenizer"


def small(sensors: tuple[Sensor, ...] = TEN_TWENTY[:6]) -> BrainOmni:
    """The fixture's model, with its weights."""
    meta = json.loads((PARITY / "brainomni" / "meta.json").read_text())
    model = BrainOmni(config_from_original(meta).replace(sensors=sensors)).eval()
    checkpoint.load_into(model, KEY_MAP(checkpoint.read(PARITY / "brainomni" / "weights.safetensors")))
    return model


def recording(samples: int, channels: int = 6, items: int = 1) -> torch.Tensor:
    return torch.randn(items, channels, samples, generator=torch.Generator().manual_seed(samples))


def test_full_size_model_matches_the_published_names_and_shapes() -> None:
    assert_full_size_matches(KEYS, "braintokenizer")
    (listed,) = json.loads((PARITY / "brainomni" / "published.json").read_text())
    card = registry.card(listed["name"])
    assert card.source is not None
    assert card.source.repo == listed["repo"]
    expected = config_from_original({"original": {"kwargs": listed["kwargs"]}})
    assert registry.family("brainomni").config.from_dict(card.config) == expected


def test_file_of_the_published_layout_loads_encodes_and_decodes(tmp_path: Path) -> None:
    state = {key: torch.randn(shape) * 0.02 for key, shape in published_shapes(KEYS).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = zoo.create_model("braintokenizer", checkpoint=tmp_path / "pytorch_model.bin", sensors=TEN_TWENTY[:3])
    tokens = model.encode(recording(700, 3))
    assert tokens.indices.shape == (1, 4, 2 * 8 * 16)  # two windows of 8 frames of 16 sources
    assert model.decode(tokens).shape == (1, 3, 700)
    assert model.bitrates[-1] == 2304


def test_any_number_of_sensors_gives_as_many_tokens() -> None:
    for count in (1, 4, 19):
        model = small(TEN_TWENTY[:count])
        tokens = model.encode(recording(200, count))
        assert tokens.indices.shape == (1, 3, 4 * 8 * 3)
        assert model.decode(tokens).shape == (1, count, 200)
    with pytest.raises(ValueError, match=r"expected a batch of shape \(batch, 19, samples\), got \(1, 4, 200\)"):
        model.encode(recording(200, 4))


def test_the_order_of_the_sensors_does_not_matter() -> None:
    model = small()
    x = recording(128)
    order = [3, 0, 5, 1, 2, 4]
    turned = small(tuple(TEN_TWENTY[i] for i in order))
    tokens, again = model.encode(x), turned.encode(x[:, order])
    assert torch.equal(tokens.indices, again.indices)
    torch.testing.assert_close(turned.decode(again), model.decode(tokens)[:, order], rtol=1e-4, atol=1e-6)


def test_sensors_of_each_item_may_differ() -> None:
    model, other = small(), small(TEN_TWENTY[6:12])
    x = recording(128, items=2)
    places, types = torch.cat([model.places, other.places]), torch.cat([model.types, other.types])
    with torch.no_grad():
        latent = model.latent(x, places, types)
        torch.testing.assert_close(latent[:1], model.latent(x[:1]))
        torch.testing.assert_close(latent[1:], other.latent(x[1:]))
        signals = model.reconstruct(latent, places, types)
        torch.testing.assert_close(signals[1:], other.reconstruct(latent[1:]))


def test_windows_are_independent() -> None:
    """So that a recording of any length is coded window by window, with the very same tokens."""
    model = small()
    window = model.spec.multiple
    x = recording(5 * window + 11)
    whole = model.encode(x).indices
    pieces = [model.encode(piece).indices for piece in x.split(window, dim=-1)]
    assert torch.equal(torch.cat(pieces, dim=-1), whole)


def test_sources_and_frames_come_apart() -> None:
    model = small()
    indices = model.encode(recording(128)).indices
    apart = model.by_source(indices)
    assert apart.shape == (1, 3, 3, 16)
    for source in range(3):
        assert torch.equal(apart[:, :, source], indices[..., source::3])


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 170])
def test_any_number_of_samples_comes_back(samples: int) -> None:
    model = small()
    x = recording(samples, items=2)
    tokens = model.encode(x)
    assert model.decode(tokens).shape == x.shape
    items = [x[0], recording(2 * samples + 1)[0]]
    together = model.encode(items)
    assert torch.equal(together.indices[0, :, : tokens.indices.shape[-1]], tokens.indices[0])


def test_wrong_units_and_sensors_are_refused() -> None:
    with pytest.raises(ValueError, match="expected values in"):
        small().encode(recording(64) * 1e6)
    with pytest.raises(ConfigError, match="expected a type from 0 to 2, got 3"):
        Sensor((0.0, 0.0, 1.0), (0.0, 0.0, 1.0), 3)
    with pytest.raises(ConfigError, match="expected at least one sensor"):
        small(())


def test_the_electrodes_are_on_a_head() -> None:
    places = torch.tensor([sensor.position for sensor in TEN_TWENTY])
    torch.testing.assert_close(places.norm(dim=1), torch.ones(19), rtol=1e-3, atol=1e-3)
    mirrored = places * torch.tensor([-1.0, 1.0, 1.0])  # the montage is symmetric
    assert bool((torch.cdist(places, mirrored).min(dim=1).values < 1e-3).all())
    assert TEN_TWENTY[9].position == (0.0, 0.0, 1.0)
    assert TEN_TWENTY[0].position[0] < 0 < TEN_TWENTY[0].position[1]  # front left


def test_sensors_stand_about_the_middle_of_their_kind() -> None:
    draw = torch.Generator().manual_seed(0)
    positions, directions = torch.randn(9, 3, generator=draw) * 40 + 7, torch.randn(9, 3, generator=draw)
    types = torch.tensor([0, 1, 2, 0, 0, 1, 2, 2, 0])
    found = placed(positions, directions, types)
    for kind in (types == 0, types != 0):  # magnetometers and gradiometers are one device
        torch.testing.assert_close(found[kind, :3].mean(0), torch.zeros(3), rtol=0, atol=1e-6)
        torch.testing.assert_close(found[kind, :3].square().sum(1).mean(), torch.tensor(1 / 3))
        apart = torch.cdist(found[kind, :3], found[kind, :3]) / torch.cdist(positions[kind], positions[kind])
        between = apart[~torch.eye(len(apart), dtype=torch.bool)]
        torch.testing.assert_close(between, between[:1].expand_as(between))
    assert not found[types == 0, 3:].any()
    assert torch.equal(found[types != 0, 3:], directions[types != 0])
    assert torch.equal(placed(1000 * positions, directions, types).round(decimals=5), found.round(decimals=5))
    alone = placed(positions[:2], directions[:2], types[:2])
    assert not alone[:, :3].any()


def test_signals_are_scaled_by_the_type_of_their_sensors() -> None:
    units = torch.tensor([3e-5, 2e-12, 5e-11, 3e-5, 3e-5, 2e-12, 5e-11])
    types = torch.tensor([0, 1, 2, 0, 0, 1, 2])
    signals = units[:, None] * (4 + torch.randn(7, 500, generator=torch.Generator().manual_seed(0)))
    found = scaled(signals, types).double()
    for kind, least in enumerate((1e-5, 1e-13, 1e-13)):
        raw = signals[types == kind].double()
        centred = raw - raw.mean(0)
        expected = centred / (centred.square().mean().sqrt() + least)  # its mean is 0
        torch.testing.assert_close(found[types == kind], expected, rtol=1e-4, atol=1e-5)
    assert not scaled(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64)).any()


def test_a_model_starts_from_small_weights_without_biases() -> None:
    model = zoo.create_model("braintokenizer")
    assert float(model.to_key.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert not model.to_key_value.bias.any()
    narrow = zoo.create_model("braintokenizer", width=64, quantizer={"kind": "vector", "codebook_size": 8, "dim": 64})
    assert float(narrow.to_key.weight.std()) == pytest.approx(0.04, rel=0.05)


def test_without_the_rotation_trick_gradients_pass_straight_through() -> None:
    meta = json.loads((PARITY / "brainomni" / "meta.json").read_text())
    meta["original"]["kwargs"]["rotation_trick"] = False
    model = BrainOmni(config_from_original(meta))
    checkpoint.load_into(model, KEY_MAP(checkpoint.read(PARITY / "brainomni" / "weights.safetensors")))
    latent, upstream = torch.randn(2, 2, 5, model.config.width)
    levels = list(model.quantizer.train().levels)  # type: ignore[union-attr]
    maps = [level.project_out.weight @ level.project_in.weight for level in levels]
    latent.requires_grad_()
    (model.quantizer(latent).codes * upstream).sum().backward()
    torch.testing.assert_close(latent.grad, upstream @ sum(maps))


def test_codebooks_that_follow_no_averages_are_refused() -> None:
    meta = json.loads((PARITY / "brainomni" / "meta.json").read_text())
    meta["original"]["kwargs"]["quantize_optimize_method"] = "sim"
    with pytest.raises(ValueError, match="expected quantize_optimize_method ema, got sim"):
        config_from_original(meta)
