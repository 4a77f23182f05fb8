"""What the families promise whose images a diffusion model makes: Selftok and SEED."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_published import PARITY
from tiny_pipeline import clip_tokenizer, stable_diffusion

import zoo
from tokenizers_visual import seed_tokenizer, selftok
from tokenizers_visual.seed_tokenizer import PromptConfig, QFormerConfig, SeedConfig, SeedTokenizer, VisionConfig
from tokenizers_visual.selftok import FlowConfig, Selftok, SelftokConfig
from zoo.config import ConfigError
from zoo.layers.diffusion_transformer import GridPatches, euler, flow_times
from zoo.layers.mmdit import MMDiT
from zoo.layers.unclip import UnCLIP, UnCLIPConfig
from zoo.quantizers import EmaCodebookConfig, VectorConfig
from zoo.quantizers.position_diversity import PositionDiversityConfig

FLOW = FlowConfig(head_width=8, layers=2, positions=4, stage_ends=(500, 1000), stage_tokens=(5, 3), steps=3)
DIVERSE = PositionDiversityConfig(8, VectorConfig(16, 4, metric="cosine", codebook=EmaCodebookConfig()), groups=2)
SELFTOK = SelftokConfig(
    channels=4, latent_size=8, positions=6, num_tokens=8, width=8, heads=2, query_width=8, query_heads=2, layers=2,
    decoder=FLOW, quantizer=DIVERSE,
)  # fmt: skip
UNCLIP = UnCLIPConfig(
    embedding_width=8, channels=(8, 8), blocks=1, heads=(2, 2), prompt_length=3, prompt_width=8, latent_size=4,
    decoder_channels=(8, 8), decoder_blocks=1, norm_groups=2, steps=4, guidance_scale=3.0,
)  # fmt: skip
SEED = SeedConfig(
    image_size=16, num_tokens=5, vision=VisionConfig(8, 1, 2, 16, 8), queries=QFormerConfig(12, 2, 2, 16),
    decoder_layers=1, embedding_width=8, quantizer=VectorConfig(16, 4),
)  # fmt: skip


PROMPT = SEED.replace(prompt=PromptConfig(77, 1), embedding_width=16)


def spread(model: Any, seed: int = 0) -> Any:
    """The model with weights away from zero, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def signals(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


# -- Selftok ---------------------------------------------------------------------------------------------------------


def test_selftok_sees_all_tokens_in_noise_and_fewer_the_cleaner_the_signal() -> None:
    flow = spread(Selftok(SELFTOK)).decoder
    counts = flow.seen(torch.linspace(1, 0, 101)).sum(1)
    assert counts[0] == 8
    assert counts[-1] == 1
    assert bool((counts[1:] <= counts[:-1]).all())
    assert flow.seen(torch.tensor([0.5])).sum() == 6  # the stage up to 500 is over, and its successor shows its first


def test_selftok_velocity_depends_on_seen_tokens_alone() -> None:
    flow = spread(Selftok(SELFTOK)).decoder
    times = torch.tensor([0.4, 0.4])
    seen = flow.seen(times)
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4)
    hidden = torch.where(seen[..., None], context, torch.randn_like(context))
    shown = torch.where(seen[..., None], torch.randn_like(context), context)
    with torch.no_grad():
        expected = flow(x, times, context, seen)
        torch.testing.assert_close(flow(x, times, hidden, seen), expected)
        assert not torch.allclose(flow(x, times, shown, seen), expected, atol=1e-3)


def test_selftok_decoding_is_told_noise_seed_and_steps() -> None:
    model = spread(Selftok(SELFTOK))
    tokens = model.encode(signals(2, 4, 8, 8))
    assert torch.equal(model.decode(tokens), model.decode(tokens, seed=0, steps=3))
    assert not torch.equal(model.decode(tokens), model.decode(tokens, seed=1))
    assert not torch.equal(model.decode(tokens), model.decode(tokens, steps=2))
    of_each = model.decode(tokens, seed=[4, 7])
    assert torch.equal(of_each[1], model.decode(tokens, seed=7)[1])
    noise = torch.randn(2, 4, 8, 8)
    assert torch.equal(model.decode(tokens, noise=noise), model.decode(tokens, noise=noise))
    with pytest.raises(ValueError, match=r"noise: expected \(2, 4, 8, 8\), got \(1, 4, 8, 8\)"):
        model.decode(tokens, noise=noise[:1])
    with pytest.raises(ValueError, match="steps: expected an integer of at least 1, got 0"):
        model.decode(tokens, steps=0)


def test_selftok_without_a_decoder_gives_the_same_tokens_and_says_why_it_does_not_decode() -> None:
    whole = spread(Selftok(SELFTOK))
    part = Selftok(SELFTOK.replace(decoder=None)).eval()
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("decoder.")})
    x = signals(2, 4, 8, 8)
    tokens = part.encode(x)
    assert torch.equal(tokens.indices, whole.encode(x).indices)
    with pytest.raises(ValueError, match="expected a config with a decoder, got None"):
        part.decode(tokens)


def test_selftok_positions_are_those_of_the_published_files() -> None:
    table = zoo.checkpoint.read(PARITY / "selftok" / "weights.safetensors")["pos_embed"]
    torch.testing.assert_close(GridPatches(4, 16, 2, 8).positions, table)
    table = zoo.checkpoint.read(PARITY / "selftok__decoder" / "weights.safetensors")["model.context_pos_embed"]
    positions = MMDiT(16, 2, 2, channels=4, dim=6, tokens=16, grid=6).context_positions
    torch.testing.assert_close(positions, table, atol=1e-4, rtol=0)  # angles near 1000 in float32


def test_selftok_config_wants_stages_of_all_tokens() -> None:
    with pytest.raises(ConfigError, match="stages of 9 tokens in all, got 8"):
        SELFTOK.replace(num_tokens=9)
    with pytest.raises(ConfigError, match="rising stage_ends"):
        FLOW.replace(stage_ends=(500, 500))


def test_selftok_latents_go_through_the_autoencoder_of_diffusers_and_back() -> None:
    diffusers = pytest.importorskip("diffusers")
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()
    images = signals(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        mode = autoencoder.encode(images).latent_dist.mode()
        latents = selftok.autoencoder_latents(autoencoder, images)
        torch.testing.assert_close(latents / 1.5305 + 0.0609, mode)
        torch.testing.assert_close(selftok.autoencoder_images(autoencoder, latents), autoencoder.decode(mode).sample)


def autoencoder_of_diffusers(**changes: Any) -> Any:
    """Latents with Selftok's numbers of channels, a quarter as large as images."""
    diffusers = pytest.importorskip("diffusers")
    fields = {"block_out_channels": (4, 8, 8), "norm_num_groups": 2, "latent_channels": 4, "scaling_factor": 1.5305}
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
    }
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**{**fields, **blocks, **without, "shift_factor": 0.0609, **changes}).eval()


def test_selftok_takes_an_autoencoder_and_then_images(tmp_path: Path) -> None:
    autoencoder = autoencoder_of_diffusers()
    model = spread(Selftok(SELFTOK))
    able = model.with_autoencoder(autoencoder)
    images = signals(2, 3, 32, 32) * 2 - 1
    assert able.spec.size == (32, 32)
    with torch.no_grad():
        latents = selftok.autoencoder_latents(autoencoder, images)
        torch.testing.assert_close(able.signals(images), latents, rtol=1e-4, atol=1e-4)
        tokens = able.encode(images)
        assert torch.equal(tokens.indices, model.encode(latents).indices)
        noise = torch.randn(2, 4, 8, 8)
        expected = selftok.autoencoder_images(autoencoder, model.decode(model.encode(latents), noise=noise))
        torch.testing.assert_close(able.decode(tokens, noise=noise), expected, rtol=1e-3, atol=1e-3)
    zoo.save_model(able, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}")
    assert torch.equal(again.decode(tokens, noise=noise), able.decode(tokens, noise=noise))
    replaced = able.with_autoencoder(autoencoder_of_diffusers(layers_per_block=2))
    assert torch.equal(replaced.to_latent.weight, model.to_latent.weight)


def test_selftok_with_an_autoencoder_trains_all_but_that() -> None:
    model = spread(Selftok(SELFTOK)).with_autoencoder(autoencoder_of_diffusers()).train()
    images = signals(2, 3, 32, 32) * 2 - 1
    output = model(images)
    assert output.reconstruction.shape == images.shape
    output.quantized.losses["flow"].backward()
    moved = {name for name, part in model.named_parameters() if part.grad is not None}
    assert any(name.startswith("decoder.") for name in moved)
    assert not any(name.startswith("autoencoder.") for name in moved)


@pytest.mark.parametrize("changes", [{"latent_channels": 3}, {"scaling_factor": 0.18215}, {"shift_factor": None}])
def test_selftok_refuses_an_autoencoder_of_other_latents(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected an autoencoder with channels, scale and shift"):
        Selftok(SELFTOK).with_autoencoder(autoencoder_of_diffusers(**changes))


def test_selftok_config_wants_an_autoencoder_of_its_channels() -> None:
    with pytest.raises(ConfigError, match="an autoencoder of 4 channels"):
        SELFTOK.replace(autoencoder=selftok.STABLE_DIFFUSION_3)


def test_euler_finds_the_end_of_a_straight_flow() -> None:
    signal, noise = torch.randn(2, 3), torch.randn(2, 3)
    for steps in (1, 4):
        torch.testing.assert_close(euler(lambda x, time: noise - signal, noise, steps), signal)
    assert flow_times(4) == [1.0, 0.75, 0.5, 0.25]


def test_position_diversity_is_of_training_and_spreads_a_position_over_the_codes() -> None:
    quantizer = DIVERSE.build()
    z = torch.randn(16, 8, 4)
    assert set(quantizer.eval()(z).losses) == {"commitment"}
    quantizer.train()
    alike = quantizer(z[:1].expand(16, -1, -1)).losses["diversity"]
    quantizer = DIVERSE.build().train()
    spread_out = quantizer(torch.randn(16, 8, 4)).losses["diversity"]
    assert bool(alike.isfinite())
    assert bool(spread_out.isfinite())
    torch.testing.assert_close(quantizer.frequencies.sum(1), torch.ones(8))
    with pytest.raises(ValueError, match=r"expected latents \(batch, 8, 4\), got \(2, 7, 4\)"):
        quantizer(torch.randn(2, 7, 4))


def test_position_diversity_follows_the_frequencies_of_each_position() -> None:
    quantizer = DIVERSE.replace(decay=0.5).build().train()
    z = torch.randn(32, 8, 4)
    found = quantizer(z).levels[0]
    share = torch.stack([torch.bincount(found[:, i], minlength=16) for i in range(8)]) / 32
    torch.testing.assert_close(quantizer.frequencies, 0.3 / 16 + 0.7 * share)
    before = quantizer.frequencies.clone()
    found = quantizer(z).levels[0]
    share = torch.stack([torch.bincount(found[:, i], minlength=16) for i in range(8)]) / 32
    torch.testing.assert_close(quantizer.frequencies, 0.5 * before + 0.5 * share)


# -- SEED ------------------------------------------------------------------------------------------------------------


def test_seed_queries_do_not_see_later_ones() -> None:
    model = spread(SeedTokenizer(SEED))
    x = signals(2, 3, 16, 16)
    with torch.no_grad():
        before = model.latent(x)
        model.queries.tokens[:, 3] += torch.randn(12)
        after = model.latent(x)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:], atol=1e-3)


def test_seed_without_a_generator_gives_tokens_and_embeddings() -> None:
    model = spread(SeedTokenizer(SEED))
    tokens = model.encode(signals(2, 3, 16, 16))
    assert tokens.indices.shape == (2, 5)
    embeddings = model.embeddings(tokens)
    assert embeddings.shape == (2, 8)
    torch.testing.assert_close(model.embeddings(tokens[1:]), embeddings[1:])
    with pytest.raises(ValueError, match="has no generator of images: expected a model from with_generator"):
        model.decode(tokens)


def pipeline_of(unclip: UnCLIP, folder: Path) -> Any:
    """diffusers' pipeline with the networks of ours; at the least level the embeddings get no noise."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=unclip.config.prompt_length
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = transformers.CLIPTextConfig(vocab_size=3, max_position_embeddings=3, bos_token_id=0, eos_token_id=1, **sizes)
    vision = transformers.CLIPVisionConfig(image_size=4, patch_size=4, projection_dim=8, **sizes)
    config = unclip.config
    normalizer = StableUnCLIPImageNormalizer(config.embedding_width)
    with torch.no_grad():
        normalizer.mean.copy_(unclip.mean)
        normalizer.std.copy_(unclip.deviation)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=config.first_beta, beta_end=config.last_beta, clip_sample=False,
        prediction_type=config.prediction, timestep_spacing="trailing", set_alpha_to_one=True,
    )  # fmt: skip
    unclip.autoencoder.register_to_config(scaling_factor=config.latent_scale)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_start=0.0, beta_end=0.0),
        tokenizer=tokenizer,
        text_encoder=transformers.CLIPTextModel(text).eval(),
        unet=unclip.unet,
        scheduler=scheduler,
        vae=unclip.autoencoder,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_unclip_gives_the_images_of_the_pipeline_of_diffusers(scale: float, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    unclip = spread(UnCLIP(UNCLIP))
    unclip.mean.normal_()
    unclip.deviation.uniform_(0.5, 2)
    embedding, noise = torch.randn(2, 8), torch.randn(2, 4, 4, 4)
    pipeline = pipeline_of(unclip, tmp_path)
    unclip = UnCLIP.of(pipeline)
    assert unclip.config == UNCLIP.replace(steps=20, guidance_scale=10.0)
    expected = pipeline(
        prompt=["", ""], image_embeds=embedding, latents=noise,
        guidance_scale=scale, num_inference_steps=4, noise_level=0, output_type="pt",
    ).images  # fmt: skip
    with torch.no_grad():
        images = unclip(embedding, steps=4, guidance_scale=scale, noise=noise)
    torch.testing.assert_close(images.clamp(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_seed_takes_a_generator_from_a_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    unclip = spread(UnCLIP(UNCLIP))
    unclip.mean.normal_()
    pipeline = pipeline_of(unclip, tmp_path)
    model = spread(SeedTokenizer(SEED))
    able = model.with_generator(pipeline)
    x = signals(2, 3, 16, 16)
    tokens = able.encode(x)
    assert torch.equal(tokens.indices, model.encode(x).indices)
    assert able.generator is not None
    assert torch.equal(able.generator.mean, unclip.mean)
    images = able.decode(tokens)
    assert images.shape == x.shape
    assert torch.equal(able.decode(tokens, seed=0), images)
    assert not torch.allclose(able.decode(tokens, seed=1), images, atol=1e-3)
    assert not torch.allclose(able.decode(tokens, guidance_scale=1.0), images, atol=1e-3)


def test_seed_generator_reads_embeddings_of_the_model() -> None:
    with pytest.raises(ConfigError, match="a generator that reads 8 numbers, got 16"):
        SEED.replace(generator=UNCLIP.replace(embedding_width=16))


def test_seed_file_with_parts_for_text_and_training_loads() -> None:
    folder = PARITY / "seed_tokenizer"
    meta = json.loads((folder / "meta.json").read_text())
    state = zoo.checkpoint.read(folder / "weights.safetensors")
    expected = seed_tokenizer.KEY_MAP(state)
    more = ("Qformer.bert.encoder.layer.0.intermediate.dense.weight", "Qformer.bert.encoder.layer.0.output.dense.bias",
            "Qformer.bert.embeddings.word_embeddings.weight", "Qformer.cls.predictions.bias", "pos_embed",
            "blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.weight")  # fmt: skip
    found = seed_tokenizer.KEY_MAP({**state, **{key: torch.zeros(1) for key in more}})
    assert found.keys() == expected.keys()
    assert found.keys() == SeedTokenizer(seed_tokenizer.config_from_original(meta)).state_dict().keys()


def test_first_seed_gives_the_prompt_that_a_pipeline_of_diffusers_takes() -> None:
    model = spread(SeedTokenizer(PROMPT))
    tokens = model.encode(signals(2, 3, 16, 16))
    states = model.embeddings(tokens)
    assert states.shape == (2, 77, 16)
    torch.testing.assert_close(model.embeddings(tokens[1:]), states[1:])
    assert not torch.allclose(states[:, :1], states[:, 1:2], atol=1e-3)  # each state has a query of its own
    pipeline = stable_diffusion(clip_tokenizer())
    images = pipeline(prompt_embeds=states, negative_prompt=["", ""], num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="expected its embeddings as prompt_embeds, got one of tokens and embeddings"):
        model.decode(tokens)


def test_first_seed_reads_states_of_a_prompt_from_all_codes() -> None:
    model = spread(SeedTokenizer(PROMPT))
    codes = torch.randn(1, 5, 4)
    changed = codes.clone()
    changed[:, -1] += 1
    with torch.no_grad():
        before, after = model.embedding_of(codes), model.embedding_of(changed)
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": UNCLIP.replace(embedding_width=16)}, "no prompt beside a generator"),
        ({"prompt": {"length": 0}}, "length >= 1"),
        ({"prompt": {"layers": 0}}, "layers >= 1"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PROMPT.replace(**changes)


def test_the_three_files_of_the_first_seed_join_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PARITY / "seed_tokenizer__prompt"
    meta = json.loads((folder / "meta.json").read_text())
    state = zoo.checkpoint.read(folder / "weights.safetensors")
    vision = {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}
    queries = {k: v for k, v in state.items() if k.startswith(("Qformer.", "query_tokens", "ln_vision."))}
    rest = {k: v for k, v in state.items() if k not in queries and not k.startswith("visual_encoder.")}
    surplus = {"head.weight": torch.zeros(1), "blocks.39.norm1.weight": torch.zeros(16), "norm.bias": torch.zeros(1)}
    training = {"temp": torch.zeros(()), "vision_proj.weight": torch.zeros(1), "itm_head.bias": torch.zeros(2),
                "Qformer.cls.predictions.bias": torch.zeros(1)}  # fmt: skip
    torch.save({**vision, **surplus}, tmp_path / "eva_vit_g.pth")
    torch.save({"model": {**queries, **training}, "epoch": 9}, tmp_path / "causal_qformer.pth")
    torch.save({"model": rest, "epoch": 9}, tmp_path / "seed_tokenizer.pth")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    program = page.partition("LAVIS' `eva_vit_g.pth`")[2].partition("```python\n")[2]
    exec(program.partition("model = ")[0], {})  # up to the model, which is made small here
    small = seed_tokenizer.config_from_original(meta).to_dict()
    own = zoo.create_model("seed_tokenizer_1", checkpoint="seed_tokenizer_1.safetensors", **small).state_dict()
    expected = seed_tokenizer.KEY_MAP_OF_PROMPTS(state)
    assert own.keys() == expected.keys()
    codebook = "quantizer.codebook.weight"  # of another size than the published one, so a fresh one
    assert all(torch.equal(own[key], value) for key, value in expected.items() if key != codebook)


@pytest.mark.parametrize(("argument", "value"), [("bidirectional", True), ("attn_mask", True), ("qformer_mode", "uni")])
def test_another_encoder_than_selftoks_is_refused(argument: str, value: Any) -> None:
    meta = json.loads((PARITY / "selftok" / "meta.json").read_text())
    meta["original"]["kwargs"][argument] = value
    with pytest.raises(ValueError, match=f"expected Selftok's encoder.*{argument}"):
        selftok.config_from_original(meta)
