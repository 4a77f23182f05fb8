"""A whole FLUX with random weights, small enough for tests; its T5 knows a few words."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny_pipeline import WIDTH, clip_tokenizer, text_encoder
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = [
    "a",
    "doll",
    "wearing",
    "jacket",
    "in",
    "boat",
    "red",
    "car",
    "the",
    "picture",
    "divided",
    "into",
    "two",
    "parts",
    "left",
    "right",
    "part",
    "is",
]
T5_WIDTH = 12


def t5_tokenizer() -> T5Tokenizer:
    """Whole words of `WORDS`, and letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0)]
    letters = [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz."]
    return T5Tokenizer(vocab=[*special, *((f"▁{word}", -1.0) for word in WORDS), ("▁", -3.0), *letters])


def flux(*, guided: bool = True) -> Any:
    """The same each time; images of 16 pixels have 4 x 4 patches."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=T5_WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, shift_factor=0.1, scaling_factor=0.4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=text_encoder(), tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(config), tokenizer_2=tokenizer, transformer=transformer,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for part in (transformer, vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.eval().requires_grad_(False)
    return pipeline
