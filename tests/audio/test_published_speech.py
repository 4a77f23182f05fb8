"""Published speech codecs: the full-size models match the published names and shapes, and load from real files."""

import json
from pathlib import Path

import pytest
import torch
from test_published_codecs import assert_full_size_matches, published_shapes

import zoo
from audio.speech_features import MelFeaturesConfig
from zoo.registry import import_module, registry

PARITY = Path(__file__).parents[1] / "parity"
FAMILIES = ("speechtokenizer", "dm_codec", "mimi", "wavtokenizer", "bigcodec", "xcodec", "xcodec2", "sqcodec")
# fixture folder -> (key list, model) of every published key list
KEY_LISTS = {
    "speechtokenizer/keys_speechtokenizer_hubert_avg": "speechtokenizer_16khz.hubert_avg",
    "speechtokenizer/keys_speechtokenizer_snake": "speechtokenizer_16khz.snake",
    "dm_codec/keys_dm_codec_lm_sm": "dm_codec_16khz.lm_sm",
    "mimi/keys_mimi_24khz": "mimi_24khz.moshiko",
    "mimi/keys_mimi_transformers": "mimi_24khz.transformers",
    "wavtokenizer/keys_wavtokenizer_small_320_24k_4096": "wavtokenizer_24khz_75.small",
    "wavtokenizer/keys_wavtokenizer_small_600_24k_4096": "wavtokenizer_24khz_40.small",
    "bigcodec/keys_bigcodec": "bigcodec_16khz.librispeech",
    "xcodec/keys_xcodec_without_semantic_model": "xcodec_16khz.hubert_librispeech",
    "xcodec/keys_xcodec_transformers_without_semantic_model": "xcodec_16khz.hubert_librispeech_transformers",
    "xcodec2/keys_xcodec2": "xcodec2_16khz.llasa",
    "xcodec2/keys_xcodec2_transformers_without_semantic_model": "xcodec2_16khz.transformers",
}


def test_every_key_list_is_checked() -> None:
    found = {f"{name}/{path.stem}" for name in FAMILIES for path in (PARITY / name).glob("keys_*.json")}
    assert found == set(KEY_LISTS)


@pytest.mark.parametrize(("key_list", "name"), KEY_LISTS.items())
def test_full_size_model_matches_the_published_names_and_shapes(key_list: str, name: str) -> None:
    assert_full_size_matches(key_list, name)


@pytest.mark.parametrize("folder", FAMILIES)
def test_every_published_checkpoint_is_a_manifest_entry(folder: str) -> None:
    for listed in json.loads((PARITY / folder / "published.json").read_text()):
        card = registry.card(listed["name"])
        assert card.family == folder
        assert card.source is not None
        if listed["repo"] is None:
            assert listed["file"].rpartition("/")[2] in (card.source.url or "")
        else:
            assert (card.source.repo, card.source.file) == (listed["repo"], listed["file"].partition(" ")[0])
        if isinstance(listed["kwargs"], dict):
            module = import_module(card.module)
            config = registry.family(card.family, card.module).config.from_dict(card.config)
            assert config == module.config_from_original({"original": {"kwargs": listed["kwargs"]}})
        values = {metric.value for metric in card.metrics}
        assert values >= set(numbers(listed["paper_metrics"]))
        assert all(metric.protocol for metric in card.metrics)


def numbers(metrics: object) -> list[float]:
    """All numbers of a nested listing but those of the ground truth."""
    if isinstance(metrics, dict):
        return [value for key, part in metrics.items() if key != "ground_truth" for value in numbers(part)]
    return [metrics] if isinstance(metrics, int | float) else []


def random_state(key_list: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(shape).abs() * 0.02 + 1e-3 for key, shape in published_shapes(key_list).items()}


@pytest.mark.parametrize(
    "key_list",
    [
        pytest.param(key_list, marks=() if key_list == "mimi/keys_mimi_24khz" else pytest.mark.slow)
        for key_list in KEY_LISTS
    ],
)
def test_file_of_the_published_layout_loads_encodes_and_decodes(tmp_path: Path, key_list: str) -> None:
    state = random_state(key_list)
    card = registry.card(KEY_LISTS[key_list])
    content: dict[str, object] = dict(state)
    if card.container == "state_dict":
        content = {"state_dict": {**content, "discriminator.some.weight": torch.zeros(1)}, "epoch": 3}
    elif isinstance(card.container, tuple):
        content = {"generator": content, "best_dev_mel_loss": 0.5}
    elif card.container is not None:
        content = {
            part: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            for part, prefix in card.container.items()
        }
    torch.save(content, tmp_path / "published.ckpt")
    model = zoo.create_model(card.full_name, checkpoint=tmp_path / "published.ckpt")
    mapped = getattr(import_module(card.module), card.key_map)(state)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in mapped.items())
    if hasattr(model, "features"):  # the speech model is a file of its own
        model.features = MelFeaturesConfig(model.config.features.width).build(
            model.spec.sample_rate, model.spec.multiple
        )
    samples = 3 * model.spec.multiple + 7
    tokens = model.encode(torch.rand(1, 1, samples) - 0.5)
    assert tokens.indices.shape == (1, len(model.vocab_sizes), 4)
    assert model.decode(tokens).shape == (1, 1, samples)


@pytest.mark.slow
def test_bare_file_of_dm_codec_loads(tmp_path: Path) -> None:
    torch.save(random_state("dm_codec/keys_dm_codec_lm_sm"), tmp_path / "Model_best_dev.pt")
    assert zoo.create_model("dm_codec_16khz", checkpoint=tmp_path / "Model_best_dev.pt").vocab_sizes == (1024,) * 8


def small(name: str) -> zoo.Tokenizer:
    """A model of the fixture's sizes, with random weights."""
    module = import_module(f"audio.{name}")
    torch.manual_seed(0)
    config = module.config_from_original(json.loads((PARITY / name / "meta.json").read_text()))
    return registry.family(name, module.__name__).model(config).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_any_number_of_samples_comes_back(name: str) -> None:
    model = small(name)
    hop = model.spec.multiple
    least = {"wavtokenizer": hop + 1, "xcodec2": hop}.get(name, 1)  # so narrow a network has no group norm of one frame
    for samples in (least, hop - 1, hop, hop + 1, 2 * hop, 5 * hop + 3):
        if samples < least:
            continue
        x = torch.rand(1, 1, samples) - 0.5
        tokens = model.encode(x)
        decoded = model.decode(tokens)
        assert decoded.shape == x.shape
        assert bool(decoded.isfinite().all())
        assert tokens.bits == (tokens.indices[0].numel() * (model.vocab_sizes[0] - 1).bit_length(),)


@pytest.mark.parametrize("name", FAMILIES)
def test_signals_of_unequal_lengths_are_as_each_alone(name: str) -> None:
    model = small(name)
    hop = model.spec.multiple
    signals = [torch.rand(1, samples) - 0.5 for samples in (3 * hop + 1, 6 * hop, 3 * hop + 1, 4 * hop - 1)]
    together = model.encode(signals)
    decoded = model.decode(together)
    for i, signal in enumerate(signals):
        alone = model.encode(signal[None])
        frames = alone.indices.shape[-1]
        assert torch.equal(together.indices[i, :, :frames], alone.indices[0])
        torch.testing.assert_close(decoded[i, :, : signal.shape[-1]], model.decode(alone)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_silence_is_finite(name: str) -> None:
    model = small(name)
    tokens = model.encode(torch.zeros(1, 1, 4 * model.spec.multiple))
    assert bool(model.decode(tokens).isfinite().all())
