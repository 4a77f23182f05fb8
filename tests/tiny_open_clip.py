"""A tiny random CLIP with CLIP's own vocabulary, as a folder that open_clip loads."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

SIZES = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_tiny_clip(folder: Path, seed: int = 0) -> str:
    """Write the folder; gives the name by which `load_pair` knows it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**SIZES)
    with torch.no_grad():
        model.token_embedding.weight.normal_(std=0.3)  # at CLIP's own start all texts are nearly alike
        model.positional_embedding.normal_(std=0.1)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES, "preprocess_cfg": {}}))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"open_clip:local-dir:{folder}/None"
