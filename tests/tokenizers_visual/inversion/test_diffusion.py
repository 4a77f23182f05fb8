"""Words reach a real diffusers pipeline: as prompt embeddings, and as files of learned embeddings."""

import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.diffusion import (
    load_learned_embeddings,
    prompt_embeddings,
    save_learned_embeddings,
)
from tokenizers_visual.inversion.projector import PseudoWords
from zoo.checkpoint import CheckpointError

WIDTH = 16


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's own vocabulary."""
    known = open_clip.get_tokenizer("ViT-B-32")
    merges = sorted(known.bpe_ranks, key=known.bpe_ranks.get)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): place for word, place in known.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def encoder(layers: int = 3) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def words(count: int) -> PseudoWords:
    return PseudoWords(torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(1)), "tiny")


def test_tokens_are_those_of_the_tokenizer(tokenizer: CLIPTokenizer) -> None:
    pair = TransformersPair(encoder(), tokenizer, backbone="tiny")
    text = "a photo of a cat, that is red."
    own = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(pair.tokenize(text), own)
    assert pair.placeholder_id == 259


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_pipeline_that_loads_the_file_computes_the_same_prompt(
    tokenizer: CLIPTokenizer, tmp_path: Path, suffix: str, count: int
) -> None:
    pair = TransformersPair(encoder(), tokenizer, backbone="tiny")
    ours = prompt_embeddings([pair], "a photo of $ in rain", [words(count)]).prompt
    path = tmp_path / f"learned{suffix}"
    save_learned_embeddings(path, "<cat>", words(count).embeddings[0])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline(
            vae=None, text_encoder=encoder(), tokenizer=CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
            unet=None, scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, local_files_only=True)
    theirs, _ = pipeline.encode_prompt("a photo of <cat> in rain", "cpu", 1, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


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
    pair = TransformersPair(encoder(), tokenizer, backbone="tiny")
    with pytest.raises(ValueError, match="to leave one of 3 layers, got 3"):
        prompt_embeddings([pair], "$", [words(1)], clip_skip=3)
    with pytest.raises(ValueError, match="words for 1 or 2 encoders, got 2 for 1"):
        prompt_embeddings([pair], "$", [words(1)] * 2)
