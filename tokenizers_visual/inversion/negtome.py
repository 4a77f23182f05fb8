"""NegToMe: pushes the tokens of an attention's output away from those of a reference that they resemble most.

Project page: negtome.github.io. Original: 1jsingh/negtome (MIT). It works in the layers of a diffusion transformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def push_from_reference(
    hidden: Tensor, *, strength: float = 0.9, threshold: float = 0.65, mask: Tensor | None = None
) -> Tensor:
    """Tokens (B, N, D), of which item 0 is the reference, extrapolated away from its tokens; item 0 stays.

    As in the original, the best match is sought for each place j among the item's own tokens i, and the reference's
    token i is what place j is pushed from.

    Args:
        hidden: an attention's output, of the image's tokens alone.
        strength: 0 changes nothing.
        threshold: cosine above which a token is pushed.
        mask: bool (N,) or (1, N), the reference's tokens that may be matched.

    Raises:
        ValueError: tokens of another shape, or a mask of another length.
    """
    if hidden.ndim != 3:
        raise ValueError(f"expected tokens (B, N, D), got {tuple(hidden.shape)}")
    if mask is not None and mask.numel() != hidden.shape[1]:
        raise ValueError(f"expected a mask of {hidden.shape[1]} tokens, got {tuple(mask.shape)}")
    unit = F.normalize(hidden.float(), dim=-1)
    likeness = unit @ unit[0].T  # (B, own tokens, the reference's)
    if mask is not None:
        likeness = likeness.masked_fill(~mask.bool().reshape(-1), -torch.inf)
    best = likeness.max(dim=1)
    pushed = (1 + strength) * hidden - strength * hidden[0][best.indices]
    return torch.where((best.values > threshold)[..., None], pushed, hidden)
