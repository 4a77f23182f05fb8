"""Selftok with a renderer: one step from tokens to a signal, without noise."""

import json
from pathlib import Path

import pytest
import torch
from test_generated_families import SELFTOK, autoencoder_of_diffusers, signals, spread
from test_published import PARITY

import zoo
from tokenizers_visual import selftok
from tokenizers_visual.selftok import FlowConfig, Renderer, RendererConfig, Selftok, SelftokConfig
from zoo.checkpoint import CheckpointError, load_into
from zoo.config import ConfigError
from zoo.interop.export import export
from zoo.registry import read_checkpoint, registry

RENDERING = SELFTOK.replace(decoder=RendererConfig(head_width=8, layers=2))
FIXTURES = ("selftok__renderer", "selftok__renderer_own_mask_tokens")


def renderer_of(folder: str) -> tuple[SelftokConfig, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The config, the published names and the arrays of a fixture."""
    meta = json.loads((PARITY / folder / "meta.json").read_text())
    weights, arrays = (zoo.checkpoint.read(PARITY / folder / f"{kind}.safetensors") for kind in ("weights", "arrays"))
    return selftok.config_from_original(meta), weights, arrays


def test_renderer_decodes_alike_whatever_the_batch_and_takes_no_options_of_a_flow() -> None:
    model = spread(Selftok(RENDERING))
    tokens = model.encode(signals(3, 4, 8, 8))
    images = model.decode(tokens)
    assert images.shape == (3, 4, 8, 8)
    torch.manual_seed(7)
    assert torch.equal(model.decode(tokens), images)
    torch.testing.assert_close(model.decode(tokens[1:2]), images[1:2])
    for option in ({"steps": 1}, {"seed": 0}, {"noise": torch.zeros(3, 4, 8, 8)}, {"guidance_scale": 2.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            model.decode(tokens, **option)
    with pytest.raises(ValueError, match="decodes without noise"):
        model.noise_shape(model.codes(tokens))


def test_renderer_reads_every_token_and_gives_the_tokens_of_the_flow() -> None:
    flow, model = spread(Selftok(SELFTOK)), spread(Selftok(RENDERING))
    own = {key: part for key, part in flow.state_dict().items() if not key.startswith("decoder.")}
    model.load_state_dict(own, strict=False)
    x = signals(1, 4, 8, 8)
    indices = model.encode(x).indices
    assert torch.equal(indices, flow.encode(x).indices)
    images = model.decode(model.tokens(indices))
    for place in range(indices.shape[1]):
        other = indices.clone()
        other[0, place] = (other[0, place] + 1) % 16
        assert not torch.allclose(model.decode(model.tokens(other)), images, atol=1e-4)


def test_renderer_learns_from_its_reconstruction() -> None:
    model = spread(Selftok(RENDERING)).train()
    x = signals(2, 4, 8, 8)
    output = model(x)
    assert output.reconstruction.shape == x.shape
    assert not model.own_losses & output.quantized.losses.keys()
    torch.nn.functional.mse_loss(output.reconstruction, x).backward()
    still = {name for name, part in model.named_parameters() if part.grad is None}
    assert still == {"quantizer.inner.codebook.weight"}  # which follows averages


def test_renderer_learns_what_tokens_tell() -> None:
    """Better than the mean of all signals, which it could give without reading its tokens."""
    torch.manual_seed(0)
    renderer = Renderer(RendererConfig(head_width=16, layers=2), channels=4, dim=4, tokens=8, size=8)
    x, context = signals(8, 4, 8, 8), torch.randn(8, 8, 4)
    optimizer = torch.optim.Adam(renderer.parameters(), 5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(renderer(context), x)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * x.var(0, correction=0).mean()


def test_renderer_gives_images_with_an_autoencoder_and_is_saved(tmp_path: Path) -> None:
    autoencoder, model = autoencoder_of_diffusers(), spread(Selftok(RENDERING))
    able = model.with_autoencoder(autoencoder)
    tokens = able.encode(signals(2, 3, 32, 32) * 2 - 1)
    images = able.decode(tokens)
    with torch.no_grad():
        expected = selftok.autoencoder_images(autoencoder, model.decode(model.tokens(tokens.indices)))
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)
    zoo.save_model(able, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}")
    assert again.config == able.config
    assert torch.equal(again.decode(tokens), images)


def test_renderer_decodes_as_one_compiled_graph() -> None:
    model = spread(Selftok(RENDERING))
    tokens = model.encode(signals(2, 4, 8, 8))
    with torch.no_grad():
        found = torch.compile(model.reconstruct, fullgraph=True, backend="eager")(model.codes(tokens))
    torch.testing.assert_close(found, model.decode(tokens))


@pytest.mark.slow
def test_renderer_is_a_program_for_any_batch_without_noise(tmp_path: Path) -> None:
    model = spread(Selftok(RENDERING))
    _, decode = export(model, tmp_path, "torch-export", size=(8, 8))
    assert (decode.inputs, decode.free) == (("level_0",), ("batch",))
    tokens = model.encode(signals(3, 4, 8, 8))
    found = torch.export.load(decode.file).module()(tokens.indices)
    torch.testing.assert_close(found, model.decode(tokens))


@pytest.mark.parametrize("folder", FIXTURES)
@pytest.mark.parametrize("container", ["state_dict", None])
def test_renderer_file_of_the_published_layout_loads(tmp_path: Path, folder: str, container: str | None) -> None:
    config, weights, arrays = renderer_of(folder)
    assert {key.partition(".")[0] for key in weights} == {"encoder", "model", "diffusion"}
    path = tmp_path / "renderer_512_ckpt.pth"
    torch.save({container: weights, "ema_state_dict": {}} if container else weights, path)
    model = Selftok(config).eval()
    load_into(model, read_checkpoint(registry.family("selftok"), registry.card("selftok_512_renderer"), path)[0])
    tokens = model.encode(arrays["signal"])
    assert torch.equal(tokens.indices, arrays["indices"])
    expected = arrays["rendered"].to(torch.float32)
    torch.testing.assert_close(model.decode(tokens), expected, rtol=1e-4, atol=1e-4)


def test_a_file_with_another_kind_of_mask_token_is_refused(tmp_path: Path) -> None:
    config, weights, _ = renderer_of(FIXTURES[1])
    path = tmp_path / "renderer.pth"
    torch.save(weights, path)
    model = Selftok(config.replace(decoder=RendererConfig(head_width=16, layers=2)))
    state, _ = read_checkpoint(registry.family("selftok"), registry.card("selftok_1024_renderer"), path)
    with pytest.raises(CheckpointError, match="mask_token"):
        load_into(model, state)


def test_decoder_without_a_kind_is_a_flow() -> None:
    flow = SELFTOK.replace(decoder={"layers": 2, "stage_ends": [1000], "stage_tokens": [8]})
    assert flow.decoder == FlowConfig(layers=2, stage_ends=(1000,), stage_tokens=(8,))
    assert SELFTOK.replace(decoder={"kind": "renderer"}).decoder == RendererConfig()
    assert SelftokConfig.from_dict(json.loads(json.dumps(RENDERING.to_dict()))) == RENDERING
    with pytest.raises(ConfigError, match="expected kind none or renderer, got 'flow'"):
        SELFTOK.replace(decoder={"kind": "flow"})
    with pytest.raises(ConfigError, match="layers >= 1"):
        RendererConfig(layers=0)


def test_models_of_1024_tokens_say_what_is_assumed() -> None:
    assumed, published = (registry.card(f"selftok_{count}") for count in (1024, 512))
    assert "ASSUMED, not published" in assumed.notes
    stages = [card.config["decoder"]["stage_tokens"] for card in (assumed, published)]
    assert stages[0] == [2 * count for count in stages[1]]
