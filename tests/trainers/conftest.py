"""What several tests of training need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def noise_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four images of noise, 56 x 48."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(generator.integers(0, 255, (48, 56, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def small_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in timm's layout of a DINOv2 for 42 px of patches of 14, as wide and deep as robust_tok_photos."""
    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(42, 14, num_classes=0, embed_dim=128, depth=4, num_heads=4, init_values=0.1)
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path
