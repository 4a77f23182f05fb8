"""Models of transformers become models of the zoo and back: same tokens and signals, also from a written folder."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from audio.speech_features import MelFeaturesConfig
from zoo.checkpoint import read
from zoo.interop import from_transformers, to_transformers
from zoo.interop.export import ExportError, example_sides, example_signal
from zoo.interop.transformers import agreement, save
from zoo.registry import registry
from zoo.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
SEGMENTS = {
    "target_bandwidths": [0.45, 1.8], "audio_channels": 2, "normalize": True, "chunk_length_s": 0.3, "overlap": 0.01,
    "norm_type": "time_group_norm", "use_causal_conv": False,
}  # fmt: skip
ENCODEC: dict[str, Any] = {
    "target_bandwidths": [0.45, 0.9, 1.8], "sampling_rate": 3000, "hidden_size": 16, "num_filters": 3,
    "upsampling_ratios": [5, 4, 2], "codebook_size": 64, "codebook_dim": 16,
}  # fmt: skip
XCODEC: dict[str, Any] = {
    "codebook_size": 32, "target_bandwidths": [0.25, 0.5, 1.0],
    "acoustic_model_config": {
        "model_type": "dac", "encoder_hidden_size": 2, "decoder_hidden_size": 32, "hidden_size": 16,
    },
    "semantic_model_config": {
        "model_type": "hubert", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 32, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip
XCODEC2_SPEECH: dict[str, Any] = {
    "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "conv_depthwise_kernel_size": 5,
}  # fmt: skip
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "encodec": ("Encodec", ENCODEC),
    "encodec in segments": ("Encodec", {**ENCODEC, **SEGMENTS}),
    "dac": ("Dac", {
        "encoder_hidden_size": 4, "downsampling_ratios": [2, 4, 4], "decoder_hidden_size": 32, "n_codebooks": 4,
        "codebook_size": 64, "codebook_dim": 6, "quantizer_dropout": 0.5, "sampling_rate": 4000,
    }),
    "mimi": ("Mimi", {
        "sampling_rate": 2400, "num_filters": 2, "hidden_size": 16, "upsampling_ratios": [4, 3, 2], "codebook_size": 32,
        "codebook_dim": 8, "num_quantizers": 5, "vector_quantization_hidden_dimension": 8, "num_hidden_layers": 2,
        "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 20, "upsample_groups": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }),
    "xcodec": ("Xcodec", XCODEC),
    "xcodec with WavLM": ("Xcodec", {
        **XCODEC, "semantic_model_config": {**XCODEC["semantic_model_config"], "model_type": "wavlm"},
    }),
    "wavtokenizer": ("WavTokenizer", {
        "sampling_rate": 3000, "num_filters": 2, "upsampling_ratios": [5, 4, 2], "hidden_size": 16, "codebook_dim": 16,
        "codebook_size": 32, "decoder_hidden_size": 64, "decoder_intermediate_size": 48, "decoder_num_layers": 2,
        "adanorm_num_embeddings": 3,
    }),
    "xcodec2": ("Xcodec2", {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32, "encoder_hidden_size": 2, "quantization_dim": 80,
        "semantic_model_config": XCODEC2_SPEECH,
    }),
    "janus": ("JanusVQVAE", {
        "embed_dim": 4, "num_embeddings": 50, "latent_channels": 8, "base_channels": 32, "num_patches": 64,
        "channel_multiplier": [1, 1, 2], "num_res_blocks": 1,
    }),
}  # fmt: skip
FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "encodec_24khz": ("Encodec", {}),
    "encodec_48khz": ("Encodec", {
        **SEGMENTS, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "sampling_rate": 48000, "chunk_length_s": 1.0,
    }),
    "dac_44khz": ("Dac", {"sampling_rate": 44100}),
    "mimi_24khz": ("Mimi", {}),
    "xcodec_16khz": ("Xcodec", {}),
    "xcodec2_16khz": ("Xcodec2", {}),
    "wavtokenizer_24khz_40": ("WavTokenizer", {}),
    "janus": ("JanusVQVAE", {"num_patches": 16}),
}  # fmt: skip


def peer(kind: str, fields: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with random weights, its samples in [-1, 1], which gives many tokens."""
    torch.manual_seed(seed)
    name = kind if kind.endswith("VQVAE") else f"{kind}Model"
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**fields)).eval()
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith(("cluster_usage", "cluster_size")):
                value.uniform_(0.5, 4.0)
            elif key.endswith(("embed", "embed_sum", "embed_avg", "codebook.weight")):
                value.normal_()
            elif key.endswith("quantize.embedding.weight"):
                value.copy_(nn.functional.normalize(torch.randn_like(value), dim=-1))
            elif key.endswith("layer_scale.scale"):
                value.fill_(0.3)
            elif key.startswith("decoder.conv_out"):
                value.mul_(0.1)
            elif kind == "Xcodec2" and isinstance(value, nn.Parameter) and value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
        if kind in ("Encodec", "WavTokenizer"):
            codebooks_near_latents(model)
    return model


def codebooks_near_latents(model: Any) -> None:
    """A new encoder's latents are so much alike that codes drawn elsewhere would all give one token."""
    encoder = getattr(model, "encoder_model", model).encoder
    latents = encoder(torch.rand(4, model.config.audio_channels, 20 * model.config.hop_length) * 2 - 1)
    books = [value for key, value in model.named_buffers() if key.endswith("codebook.embed")]
    for level, book in enumerate(books):
        book.normal_().mul_(latents.std((0, 2)))
        if level == 0:
            book.add_(latents.mean((0, 2)))


def assert_loaded(model: Tokenizer, other: Any) -> None:
    """In float64, where processors that sum in other orders agree; it makes X-codec2's features in float32."""
    dtype = torch.float32 if type(model).__name__ == "XCodec2" else torch.float64
    model, other = copy.deepcopy(model).to(dtype), copy.deepcopy(other).to(dtype)
    size = None if model.spec.modality == "image" else (2048,)
    tokens = model.encode(example_signal(model, example_sides(model, size), 2, 0).to(dtype))
    levels = [tokens.indices] if size is None else tokens.indices.unbind(1)
    assert min(len(level.unique()) for level in levels) > 3
    assert float(model.decode(tokens).abs().max()) > 5e-3
    same, difference = agreement(model, other, size=size)
    assert same == 1
    assert difference < 1e-5


def state(model: Any, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return read(folder)


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """The values of a config, and of those in it, that say what the network is."""
    others = ("target_bandwidths", "transformers_version", "dtype", "_name_or_path", "architectures")
    return {
        field: sizes(value) if isinstance(value, dict) else value
        for field, value in fields.items()
        if field not in others
    }


@pytest.mark.parametrize("name", SMALL)
def test_there_and_back_is_the_same_model(name: str, tmp_path: Path) -> None:
    theirs = peer(*SMALL[name])
    ours = from_transformers(theirs)
    assert not ours.training
    assert_loaded(ours, theirs)
    again = to_transformers(ours)
    assert type(again) is type(theirs)
    before, after = state(theirs, tmp_path / "before"), state(again, tmp_path / "after")
    assert before.keys() == after.keys()
    training = registry.family_of(ours).module.TRANSFORMERS.training  # type: ignore[attr-defined]
    for key, value in before.items():
        if key.startswith(training):  # which we do not hold
            assert after[key].shape == value.shape, key
            continue
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6, msg=key)
    assert sizes(again.config.to_dict()) == sizes(theirs.config.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_models_are_the_same_both_ways(name: str, tmp_path: Path) -> None:
    ours = from_transformers(peer(*FULL[name]))
    saved = save(ours, tmp_path)
    assert saved.tokens > 0.999
    assert saved.samples < 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_a_written_folder_is_read_by_transformers_alone(name: str, tmp_path: Path) -> None:
    ours = from_transformers(peer(*SMALL[name]))
    saved = save(ours, tmp_path)
    assert saved.tokens == 1
    assert set(saved.files) == set(tmp_path.iterdir())
    by_auto_class = saved.kind != "JanusVQVAE"  # which no auto class knows
    reader = transformers.AutoModel if by_auto_class else transformers.JanusVQVAE
    again = reader.from_pretrained(tmp_path).eval()
    assert_loaded(ours, again)
    if registry.family_of(ours).module.TRANSFORMERS.extractor is not None:  # type: ignore[attr-defined]
        extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
        assert extractor.sampling_rate == ours.spec.sample_rate


def test_rotary_pairs_of_either_order(tmp_path: Path) -> None:
    """Moshi's layout, in which neighbours turn together, becomes that of transformers, in which halves do."""
    halves = from_transformers(peer(*SMALL["mimi"]))
    neighbours = registry.family("mimi").model(halves.config.replace(rotary_pairs="neighbours")).eval()  # type: ignore[call-arg]
    neighbours.load_state_dict(halves.state_dict())
    assert_loaded(neighbours, to_transformers(neighbours))
    x = torch.rand(1, 1, 960) - 0.5
    assert not torch.allclose(neighbours.latent(x), halves.latent(x))


@pytest.mark.parametrize("family", ["encodec", "dac", "mimi", "xcodec", "xcodec2", "wavtokenizer", "llamagen_vq"])
def test_the_config_of_every_published_model_has_its_peer(family: str) -> None:
    """At full size: the fields for transformers, read again, give a model of the same weights."""
    layout = registry.family(family).module.TRANSFORMERS
    cards = [card for card in zoo.list_models() if registry.card(card).family == family]
    assert len(cards) >= (2 if family == "xcodec2" else 3)
    for name in cards:
        config = registry.family(family).config.from_dict(dict(registry.card(name).config))
        if name == "dac_44khz.16kbps":  # its latents are narrower than its encoder
            with pytest.raises(ValueError, match="and its quantizer"):
                layout.to_fields(config)
            continue
        fields = getattr(transformers, layout.config)(**layout.to_fields(config)).to_dict()
        with torch.device("meta"):
            before, after = (registry.family(family).model(each) for each in (config, layout.to_config(fields)))  # type: ignore[call-arg]
        shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (before, after)]
        assert shapes[0] == shapes[1], name


def test_precision_is_kept() -> None:
    ours = from_transformers(peer(*SMALL["dac"]).to(torch.bfloat16))
    assert ours.dtype == torch.bfloat16
    assert to_transformers(ours).dtype == torch.bfloat16


def test_what_transformers_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"transformers has too .*mimi.*, got compact"):
        to_transformers(zoo.create_model("compact_f8.photos", pretrained=True))
    ours = from_transformers(peer(*SMALL["dac"]))
    other = registry.family("dac").model(ours.config.replace(decoder_strides=(2, 4, 4)))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="the decoder mirroring the encoder"):
        to_transformers(other)
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
        )
    )
    with pytest.raises(ValueError, match=r"expected one of DacModel, .*, got LlamaModel"):
        from_transformers(llama)


@pytest.mark.parametrize(("name", "module"), [("xcodec", "semantic_model"), ("xcodec2", "semantic_encoder")])
def test_the_speech_model_comes_along(name: str, module: str) -> None:
    """As a copy, and under the name that its config says."""
    theirs = peer(*SMALL[name])
    theirs.config.semantic_model_config._name_or_path = "owner/speech"
    ours = from_transformers(theirs)
    x = torch.rand(1, 1, 3200, generator=torch.Generator().manual_seed(0)) - 0.5
    before = ours.latent(x)
    with torch.no_grad():
        for parameter in getattr(theirs, module).parameters():
            parameter.zero_()
    assert torch.equal(ours.latent(x), before)
    assert ours.config.features.repo == "owner/speech"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("wavtokenizer", {"norm_eps": 1e-5}, "expected WavTokenizer's decoder"),
        ("xcodec2", {"rms_norm_eps": 1e-5}, "expected X-codec2's network"),
        ("xcodec2", {"semantic_model_config": {**XCODEC2_SPEECH, "add_adapter": True}}, "without an adapter"),
        ("xcodec", {"block_dilations": [1, 2]}, "expected X-Codec's semantic networks"),
        ("xcodec", {"codebook_dim": 12}, "expected upsampling by .* codes of 40"),
        (
            "xcodec",
            {"semantic_model_config": {**XCODEC["semantic_model_config"], "do_stable_layer_norm": True}},
            "norms after its layers",
        ),
    ],
)
def test_another_network_is_refused(name: str, fields: dict[str, Any], message: str) -> None:
    layout = registry.family(name).module.TRANSFORMERS
    other = getattr(transformers, layout.config)(**{**SMALL[name][1], **fields})
    with pytest.raises(ValueError, match=message):
        layout.to_config(other.to_dict())


def test_an_xcodec_without_a_speech_model_is_refused() -> None:
    ours = from_transformers(peer(*SMALL["xcodec"]))
    mel = registry.family("xcodec").model(ours.config.replace(features=MelFeaturesConfig(24)))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="mean of a speech model's hidden states"):
        to_transformers(mel)
    unread = registry.family("xcodec").model(ours.config)  # type: ignore[call-arg]
    with pytest.raises(OSError, match="this speech model, whose features are encoded, cannot be read"):
        to_transformers(unread)


def test_a_folder_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disagreement found after writing takes the files back, and leaves what lay there before."""
    ours = from_transformers(peer(*SMALL["dac"]))
    (tmp_path / "note.txt").write_text("mine")
    monkeypatch.setattr(type(ours), "latent", lambda self, x: self.encoder(x).movedim(1, -1) + 1)
    with pytest.raises(ExportError, match="of the tokens are others"):
        save(ours, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_config_of_a_folder_is_plain(tmp_path: Path) -> None:
    save(from_transformers(peer(*SMALL["encodec"])), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "encodec"
    assert config["target_bandwidths"] == [0.45, 0.9, 1.8]
