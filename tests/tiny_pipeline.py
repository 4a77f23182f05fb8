"""A whole Stable Diffusion with random weights and CLIP's own vocabulary, small enough for tests."""

from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 16  # of the text encoder


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's vocabulary, which open_clip carries."""
    known = open_clip.get_tokenizer("ViT-B-32")
    merges = sorted(known.bpe_ranks, key=known.bpe_ranks.get)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): place for word, place in known.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def text_encoder(layers: int = 3) -> CLIPTextModel:
    """The same each time."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def stable_diffusion(tokenizer: CLIPTokenizer, *, inpainting: bool = False) -> Any:
    """The same each time; images are 8 pixels wide. With `inpainting` its U-Net takes a mask and masked latents too."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9 if inpainting else 4, sample_size=8, block_out_channels=(8,), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    kind = StableDiffusionInpaintPipeline if inpainting else StableDiffusionPipeline
    pipeline = kind(
        vae=vae, text_encoder=text_encoder(), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
