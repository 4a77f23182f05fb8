"""Long-CLIP: a CLIP whose texts have up to 248 tokens, by stretched positions and two contrastive losses.

Paper: arXiv 2403.15378. Original: beichenzbc/Long-CLIP (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import OpenClipPair
from zoo import checkpoint, hub

KEPT = 20  # positions that are not stretched
FILES = {"BeichenZhang/LongCLIP-B": "longclip-B.pt", "BeichenZhang/LongCLIP-L": "longclip-L.pt"}


def load_long_clip(repository: str = "BeichenZhang/LongCLIP-L") -> OpenClipPair:
    """A published Long-CLIP, from the hub. Projectors of plain CLIP do not fit it.

    Raises:
        ValueError: not one of the two published.
        zoo.hub.HubError: weights that cannot be had.
    """
    import open_clip

    if repository not in FILES:
        raise ValueError(f"expected one of {', '.join(FILES)}, got {repository!r}")
    path = hub.resolve(hub.WeightSource(repo=repository, file=FILES[repository]), name=repository)
    return long_clip_pair(checkpoint.read(path), backbone=repository, tokenizer=open_clip.SimpleTokenizer())


def long_clip_pair(
    state: Mapping[str, Tensor],
    *,
    backbone: str,
    tokenizer: Any = None,
    placeholder_id: int | None = None,
    image_head_width: int = 64,
    text_head_width: int = 64,
) -> OpenClipPair:
    """The CLIP of a state dict in Long-CLIP's layout, whose names tell the sizes.

    Raises:
        CheckpointError: weights that are not such a CLIP.
    """
    import open_clip

    state = dict(state)
    required = (
        "positional_embedding",
        "positional_embedding_res",
        "visual.conv1.weight",
        "visual.positional_embedding",
    )
    if missing := [name for name in required if name not in state]:
        raise checkpoint.CheckpointError(f"expected a Long-CLIP, got weights without {', '.join(missing)}")
    own, residual = state["positional_embedding"], state.pop("positional_embedding_res")
    state["positional_embedding"] = torch.cat([own[:KEPT], residual[KEPT:]])  # the other rows are not used
    conv, width = state["visual.conv1.weight"], state["ln_final.weight"].shape[0]
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    model = open_clip.CLIP(
        embed_dim=state["text_projection"].shape[1],
        quick_gelu=True,
        vision_cfg={
            "image_size": side * conv.shape[-1],
            "layers": _layers(state, "visual.transformer.resblocks."),
            "width": conv.shape[0],
            "head_width": image_head_width,
            "patch_size": conv.shape[-1],
        },
        text_cfg={
            "context_length": len(own),
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": width,
            "heads": width // text_head_width,
            "layers": _layers(state, "transformer.resblocks."),
        },
    )
    checkpoint.load_into(model, state)
    return OpenClipPair(model, tokenizer, backbone=backbone, placeholder_id=placeholder_id)


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).partition(".")[0]) for key in state if key.startswith(prefix))


def stretch_positions(positions: Tensor, *, keep: int = KEPT, factor: int = 4) -> Tensor:
    """Position embeddings (L, D) -> (factor L - (factor - 1) keep, D), between which they are interpolated linearly.

    The first `keep` stay, the last is followed by an extrapolation with the slope before it.

    Raises:
        ValueError: nothing to interpolate.
    """
    if not 0 <= keep < len(positions) - 1 or factor < 1:
        wanted = f"a factor of at least 1, and to keep fewer than {len(positions) - 1} positions"
        raise ValueError(f"expected {wanted}, got {factor}, {keep}")
    stretched = positions[keep:]
    slopes = stretched.diff(dim=0)
    slopes = torch.cat([slopes, slopes[-1:]])
    steps = torch.arange(factor, dtype=positions.dtype, device=positions.device) / factor
    between = stretched[:, None] + steps[:, None] * slopes[:, None]  # (L - keep, factor, D)
    return torch.cat([positions[:keep], between.flatten(0, 1)])


def principal_components(features: Tensor, components: int = 32) -> Tensor:
    """Features (B, E) in float32, of which only the largest principal components of the batch are left."""
    centred = features.float() - (mean := features.float().mean(0))
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:components]
    return centred @ basis.T @ basis + mean


def long_clip_losses(
    image_features: Tensor,
    long_features: Tensor,
    short_features: Tensor,
    scale: Tensor | float,
    *,
    components: int = 32,
    label_smoothing: float = 0.1,
) -> dict[str, Tensor]:
    """The losses of training, whose sum it is.

    Args:
        image_features, long_features, short_features: (B, E), of images, their long texts, and their short ones.
        scale: what cosines are multiplied by.

    Returns:
        `long`: symmetric cross entropy of images and long texts; `short`: of the images' principal components and the
        short texts.
    """
    images, long, short = (F.normalize(part, dim=-1) for part in (image_features, long_features, short_features))
    own = torch.arange(len(images), device=images.device)

    def symmetric(one: Tensor, other: Tensor) -> Tensor:
        logits = scale * one @ other.T
        sides = [F.cross_entropy(part, own, label_smoothing=label_smoothing) for part in (logits, logits.T)]
        return (sides[0] + sides[1]) / 2

    return {"long": symmetric(images, long), "short": symmetric(principal_components(images, components), short)}
