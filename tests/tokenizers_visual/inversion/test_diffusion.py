"""Words reach a real diffusers pipeline: as prompt embeddings, and as files of learned embeddings."""

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny_pipeline import WIDTH, clip_tokenizer, stable_diffusion, text_encoder
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.diffusion import (
    cross_attention_maps,
    denoised,
    denoising,
    denoising_loss,
    load_learned_embeddings,
    save_learned_embeddings,
    text_encoders,
    to_prompt_embeds,
)
from tokenizers_visual.inversion.textual_inversion import LearnedWords, LearnedWordsConfig
from tokenizers_visual.inversion.vocabulary import nearest_words
from tokenizers_visual.inversion.words import PseudoWords
from zoo.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer()


def copied(tokenizer: CLIPTokenizer, folder: Path, **changes: str) -> CLIPTokenizer:
    """A tokenizer of its own, since pipelines add tokens to theirs."""
    tokenizer.save_pretrained(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", **changes)


def words(count: int) -> PseudoWords:
    return PseudoWords(torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(1)), "tiny")


def test_tokens_are_those_of_the_tokenizer(tokenizer: CLIPTokenizer) -> None:
    pair = TransformersPair(text_encoder(), tokenizer, backbone="tiny")
    text = "a photo of a cat, that is red."
    own = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(pair.tokenize(text), own)
    assert pair.placeholder_id == 259


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_pipeline_that_loads_the_file_computes_the_same_prompt(
    tokenizer: CLIPTokenizer, tmp_path: Path, suffix: str, count: int
) -> None:
    pair = TransformersPair(text_encoder(), tokenizer, backbone="tiny")
    ours = to_prompt_embeds([pair], "a photo of $ in rain", [words(count)]).prompt
    path = tmp_path / f"learned{suffix}"
    save_learned_embeddings(path, "<cat>", words(count).embeddings[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline(
            vae=None, text_encoder=text_encoder(), tokenizer=copied(tokenizer, tmp_path),
            unet=None, scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, local_files_only=True)
    theirs, _ = pipeline.encode_prompt("a photo of <cat> in rain", "cpu", 1, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_pipeline_paints_the_same_from_prompt_embeddings_and_from_the_file(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    settings = {"height": 8, "width": 8, "num_inference_steps": 2, "output_type": "pt"}

    def paint(pipeline: StableDiffusionPipeline, **prompt: object) -> torch.Tensor:
        return pipeline(**prompt, **settings, generator=torch.Generator().manual_seed(0)).images

    pipeline = stable_diffusion(copied(tokenizer, tmp_path))
    (pair,) = text_encoders(pipeline, ["tiny"])
    embedded = to_prompt_embeds([pair], "a photo of $ in rain", [words(2)])
    ours = paint(pipeline, prompt_embeds=embedded.prompt, negative_prompt="ugly")
    save_learned_embeddings(tmp_path / "learned.safetensors", "<cat>", words(2).embeddings[0])
    pipeline.load_textual_inversion(str(tmp_path), weight_name="learned.safetensors", local_files_only=True)
    theirs = paint(pipeline, prompt="a photo of <cat> in rain", negative_prompt="ugly")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    other = paint(pipeline, prompt="a photo of cat in rain", negative_prompt="ugly")
    assert (theirs - other).abs().max() > 1e-4


def test_both_encoders_of_xl_take_their_own_words(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = text_encoder().config.to_dict() | {"hidden_size": 24, "num_hidden_layers": 4, "projection_dim": 20}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    pads = copied(tokenizer, tmp_path, pad_token="!")
    pipeline = StableDiffusionXLPipeline(
        vae=None, text_encoder=text_encoder(), text_encoder_2=second, unet=None, scheduler=None, tokenizer_2=pads,
        tokenizer=copied(tokenizer, tmp_path), add_watermarker=False,
    )  # fmt: skip
    pairs = text_encoders(pipeline, ["one", "two"])
    learned = [PseudoWords(torch.randn(1, 2, width), name) for width, name in ((WIDTH, "one"), (24, "two"))]
    for skip in (None, 1, 2):  # of the first encoder's three layers, the last leaves what goes into the first
        ours = to_prompt_embeds(pairs, "a photo of $ in rain", learned, clip_skip=skip)
        if skip is None:
            parts = zip(learned, ("", "_2"))
            for part, suffix in parts:
                pipeline.load_textual_inversion(
                    part.embeddings[0], token="<cat>", text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
                    tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
                )  # fmt: skip
        theirs = pipeline.encode_prompt(
            "a photo of <cat> in rain", device="cpu", do_classifier_free_guidance=False, clip_skip=skip
        )
        torch.testing.assert_close(ours.prompt, theirs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.pooled, theirs[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_words_are_learned_by_denoising_and_nothing_else_moves(tokenizer: CLIPTokenizer, kind: str) -> None:
    pipeline = stable_diffusion(tokenizer)
    (pair,) = text_encoders(pipeline, ["tiny"])
    scheduler = DDPMScheduler(prediction_type=kind)
    pipeline.unet.requires_grad_(False)
    before = {key: value.clone() for key, value in [*pair.state_dict().items(), *pipeline.unet.state_dict().items()]}
    learned = LearnedWords(LearnedWordsConfig("tiny", WIDTH, words=2))
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    times = torch.tensor([10, 700])
    optimizer, losses = torch.optim.AdamW(learned.parameters(), 0.1), []
    for _ in range(15):
        states = to_prompt_embeds([pair], "a photo of a $", [learned()]).prompt.expand(2, -1, -1)
        loss = denoising_loss(pipeline.unet, scheduler, latents, states, times, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = {**pair.state_dict(), **pipeline.unet.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    noisy = scheduler.add_noise(latents, noise, times)
    exact = [part.double() for part in (latents, noise, noisy)]
    share = scheduler.alphas_cumprod[times].double().view(-1, 1, 1, 1)
    target = exact[1] if kind == "epsilon" else share.sqrt() * exact[1] - (1 - share).sqrt() * exact[0]
    with torch.no_grad():
        predicted = pipeline.unet(noisy, times, encoder_hidden_states=states).sample
    assert losses[-1] == pytest.approx((predicted - target).square().mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="epsilon or v_prediction, got 'sample'"):
        denoising_loss(pipeline.unet, DDPMScheduler(prediction_type="sample"), latents, states, times, noise)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_prediction_tells_the_latents_behind_the_noise(tokenizer: CLIPTokenizer, kind: str) -> None:
    unet, scheduler = stable_diffusion(tokenizer).unet, DDPMScheduler(prediction_type=kind)
    latents, noise = torch.randn(2, 2, 4, 8, 8)
    times = torch.tensor([10, 400])
    predicted, target = denoising(unet, scheduler, latents, torch.randn(2, 5, WIDTH), times, noise)
    torch.testing.assert_close(denoised(scheduler, latents, times, target, target), latents)
    share = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = scheduler.add_noise(latents, noise, times)
    expected = (noisy - (1 - share).sqrt() * predicted) / share.sqrt()
    if kind == "v_prediction":
        expected = share.sqrt() * noisy - (1 - share).sqrt() * predicted
    torch.testing.assert_close(denoised(scheduler, latents, times, predicted, target), expected)


def test_attention_maps_are_those_of_the_pipelines_own_attention(tokenizer: CLIPTokenizer) -> None:
    pipeline = stable_diffusion(tokenizer)
    states = torch.randn(2, 5, WIDTH, requires_grad=True)
    attentions = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
    given: list[torch.Tensor] = []
    for attention in attentions:
        attention.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    with cross_attention_maps(pipeline.unet) as maps:
        pipeline.unet(torch.randn(2, 4, 8, 8), 5, encoder_hidden_states=states)
    assert len(maps) == len(attentions) > 1
    for probabilities in maps:
        assert probabilities.shape[0::3] == (2, 5)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))
    first = next(module for name, module in pipeline.unet.down_blocks.named_modules() if name.endswith("attn2"))
    values = first.to_v(states).unflatten(-1, (first.heads, -1)).transpose(1, 2)
    mixed = first.to_out[0]((maps[0] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, given[0], rtol=1e-4, atol=1e-5)
    sum(part.square().sum() for part in maps).backward()
    assert states.grad.abs().sum() > 0
    pipeline.unet(torch.randn(2, 4, 8, 8), 5, encoder_hidden_states=states)
    assert len(maps) == len(attentions)  # nothing is watched behind the block


def test_words_of_loaded_files_go_back_into_prompts(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    pair = TransformersPair(text_encoder(), tokenizer, backbone="tiny")
    save_learned_embeddings(tmp_path / "x.bin", "<cat>", words(2).embeddings[0])
    loaded = PseudoWords(load_learned_embeddings(tmp_path / "x.bin")["<cat>"][None], "tiny")
    one, other = (to_prompt_embeds([pair], "a $", [given]).prompt for given in (words(2), loaded))
    assert torch.equal(one, other)


def test_the_pipelines_clip_is_told_by_its_width_and_must_be_known(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    pipeline = stable_diffusion(copied(tokenizer, tmp_path))
    with pytest.raises(ValueError, match=r"a backbone for each text encoder, got \[''\] for widths \[16\]"):
        text_encoders(pipeline)
    with pytest.raises(ValueError, match="a backbone for each text encoder"):
        text_encoders(pipeline, ["one", "two"])
    pipeline.text_encoder.config.hidden_size = 768
    assert text_encoders(pipeline)[0].backbone == "openai/clip-vit-large-patch14"


def test_words_read_back_in_the_real_vocabulary(tokenizer: CLIPTokenizer) -> None:
    pair = TransformersPair(text_encoder(), tokenizer, backbone="tiny")
    ids = tokenizer("red cat", add_special_tokens=False)["input_ids"]
    real = PseudoWords(pair.token_embeddings(torch.tensor([ids])), "tiny")
    assert [word[0].text for word in nearest_words(pair, real, 1)[0]] == ["red", "cat"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_files_come_back(tmp_path: Path, suffix: str) -> None:
    save_learned_embeddings(tmp_path / f"x{suffix}", "<cat>", words(2).embeddings[0])
    (entry,) = load_learned_embeddings(tmp_path / f"x{suffix}").items()
    assert entry[0] == "<cat>"
    assert torch.equal(entry[1], words(2).embeddings[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_layouts_of_others_are_read(tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(2, 6), "clip_g": torch.ones(2, 8)}, tmp_path / "xl.safetensors")
    assert {k: v.shape for k, v in load_learned_embeddings(tmp_path / "xl.safetensors").items()} == {
        "clip_l": (2, 6), "clip_g": (2, 8)
    }  # fmt: skip
    torch.save({"<style>": torch.ones(6)}, tmp_path / "one.bin")
    assert load_learned_embeddings(tmp_path / "one.bin")["<style>"].shape == (1, 6)
    parameter = torch.nn.Parameter(torch.ones(2, 6))
    torch.save({"string_to_param": {"*": parameter}, "name": "web", "sd_checkpoint": None}, tmp_path / "web.pt")
    assert not load_learned_embeddings(tmp_path / "web.pt")["web"].requires_grad


def test_what_does_not_fit_is_refused(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected words \(n, D\), got \(1, 2, 16\)"):
        save_learned_embeddings(tmp_path / "x.bin", "<cat>", words(2).embeddings)
    with pytest.raises(ValueError, match=r"\.safetensors, \.bin or \.pt"):
        save_learned_embeddings(tmp_path / "x.ckpt", "<cat>", words(2).embeddings[0])
    (tmp_path / "broken.pt").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        load_learned_embeddings(tmp_path / "broken.pt")
    pair = TransformersPair(text_encoder(), tokenizer, backbone="tiny")
    with pytest.raises(ValueError, match="to leave one of 4 states, got 4"):
        to_prompt_embeds([pair], "$", [words(1)], clip_skip=4)
    with pytest.raises(ValueError, match="words for 1 or 2 encoders, got 2 for 1"):
        to_prompt_embeds([pair], "$", [words(1)] * 2)
