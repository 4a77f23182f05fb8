"""EnCodec's language model over codes, whose probabilities an arithmetic coder makes files a quarter smaller with.

Paper: arXiv 2210.13438, section 3.3. Original: facebookresearch/encodec (MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import checkpoint, hub
from zoo.checkpoint import KeyMap
from zoo.config import Config

_FOLDER = "https://dl.fbaipublicfiles.com/encodec/v0"
CODE_MODEL_WEIGHTS = {  # by the model whose codes they tell; no licence of them is stated
    "encodec_24khz": hub.WeightSource(url=f"{_FOLDER}/encodec_lm_24khz-1608e3c0.th", sha256="1608e3c0"),
    "encodec_48khz": hub.WeightSource(url=f"{_FOLDER}/encodec_lm_48khz-7add9fc3.th", sha256="7add9fc3"),
}


@dataclass(frozen=True)
class CodeModelConfig(Config):
    """Sizes of the network; the defaults are those of the published model for 24 kHz (48 kHz: 16 and 525)."""

    num_codebooks: int = 32
    codebook_size: int = 1024
    dim: int = 200
    layers: int = 5
    heads: int = 8
    window: int = 262  # frames before the current one that attention sees: 3.5 seconds

    def __post_init__(self) -> None:
        self.require(min(self.num_codebooks, self.codebook_size, self.layers) >= 1, "sizes >= 1", self)
        self.require(self.dim % self.heads == 0 and self.dim % 2 == 0, f"an even multiple of {self.heads}", self.dim)
        self.require(self.dim >= 4, "dim >= 4", self.dim)
        self.require(self.window >= 1, "a window >= 1", self.window)


class _Layer(nn.Module):
    """Attention and a feed-forward network, each followed by a norm. What it keeps of the past are its inputs."""

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.up, self.down = nn.Linear(config.dim, 4 * config.dim), nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """One frame (B, 1, D), after the inputs (B, P, D) of the frames before."""
        seen = torch.cat([past, x], dim=1)
        q, k, v = self.qkv(seen).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q[:, :, -1:], k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class CodeModel(nn.Module):
    """Probabilities of the codes of a frame, all codebooks at once, given the frames before it."""

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.codebook_size + 1, config.dim) for _ in range(config.num_codebooks)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.heads = nn.ModuleList(nn.Linear(config.dim, config.codebook_size) for _ in range(config.num_codebooks))

    def start(self, batch: int = 1) -> CodeModelState:
        """The state before the first frame."""
        nothing = self.norm.weight.new_zeros(batch, 1, self.config.dim)
        return CodeModelState(self, [nothing] * len(self.layers))

    def forward(self, indices: Tensor) -> Tensor:
        """Probabilities of given codes, frame by frame as coding takes them.

        Args:
            indices: int64 (B, Q, frames), Q up to the number of codebooks.

        Returns:
            (B, codebook_size, Q, frames).
        """
        state, previous, frames = self.start(len(indices)), None, []
        for frame in indices.unbind(-1):
            frames.append(state.step(previous, indices.shape[1]))
            previous = frame
        return torch.stack(frames, dim=-1).transpose(1, 2)


class CodeModelState:
    """A model somewhere in a recording: the inputs that its layers look back on."""

    def __init__(self, model: CodeModel, past: list[Tensor]) -> None:
        self.model, self.past, self.frame = model, past, 0

    @torch.no_grad()
    def step(self, previous: Tensor | None, num_codebooks: int) -> Tensor:
        """Probabilities (B, Q, codebook_size) of the next frame, after the codes (B, Q) of the previous one."""
        model, config = self.model, self.model.config
        if not 1 <= num_codebooks <= config.num_codebooks:
            raise ValueError(f"expected 1 to {config.num_codebooks} codebooks, got {num_codebooks}")
        batch = len(self.past[0])
        words = torch.zeros(batch, num_codebooks, dtype=torch.int64) if previous is None else previous + 1
        words = words.to(self.past[0].device)
        x = sum(
            (embed(word) for embed, word in zip(model.embeddings, words.unbind(1))), torch.zeros(()).to(self.past[0])
        )
        x = (model.norm(x) + self._position())[:, None]
        for i, layer in enumerate(model.layers):
            kept = torch.cat([self.past[i], x], dim=1)[:, -config.window :]
            x, self.past[i] = layer(x, self.past[i]), kept
        self.frame += 1
        logits = torch.stack([head(x[:, 0]) for head in list(model.heads)[:num_codebooks]], dim=1)
        return logits.softmax(-1)

    def _position(self) -> Tensor:
        """(D,) cosines and sines of the frame's number, from fast to slow."""
        half = self.model.config.dim // 2
        steps = torch.arange(half, device=self.past[0].device, dtype=torch.float32)
        phase = self.frame / (10000 ** (steps / (half - 1)))
        return torch.cat([phase.cos(), phase.sin()]).to(self.past[0])


def window_of(frame_rate: float) -> int:
    """Frames that the published models look back: 3.5 seconds."""
    return math.floor(3.5 * frame_rate)


def config_from_original(kwargs: dict[str, Any]) -> CodeModelConfig:
    """The config of the original's constructor arguments."""
    return CodeModelConfig(
        num_codebooks=kwargs["n_q"],
        codebook_size=kwargs["card"],
        dim=kwargs["dim"],
        layers=kwargs["num_layers"],
        heads=kwargs.get("num_heads", 8),
        window=kwargs["past_context"],
    )


KEY_MAP = KeyMap(
    {
        "emb.{}.weight": "embeddings.{}.weight",
        "linears.{}.*": "heads.{}.*",
        "transformer.norm_in.*": "norm.*",
        "transformer.layers.{}.norm1.*": "layers.{}.norm1.*",
        "transformer.layers.{}.norm2.*": "layers.{}.norm2.*",
        "transformer.layers.{}.linear1.*": "layers.{}.up.*",
        "transformer.layers.{}.linear2.*": "layers.{}.down.*",
        "transformer.layers.{}.self_attn.in_proj_weight": "layers.{}.qkv.weight",
        "transformer.layers.{}.self_attn.in_proj_bias": "layers.{}.qkv.bias",
        "transformer.layers.{}.self_attn.out_proj.*": "layers.{}.out.*",
    }
)


def published_code_model(model: str, *, weights: Path | None = None) -> CodeModel:
    """The published language model, in eval mode.

    Args:
        model: "encodec_24khz" or "encodec_48khz", whose codes it tells.
        weights: a local file of the original's layout; None resolves the published one.

    Raises:
        ValueError: a model without a published one.
        zoo.checkpoint.CheckpointError: a file of other weights.
        zoo.hub.HubError: weights that cannot be had.
    """
    if model not in CODE_MODEL_WEIGHTS:
        raise ValueError(f"expected {' or '.join(CODE_MODEL_WEIGHTS)}, got {model!r}")
    network = CodeModel(
        CodeModelConfig() if model == "encodec_24khz" else CodeModelConfig(num_codebooks=16, window=525)
    )
    file = weights or hub.resolve(CODE_MODEL_WEIGHTS[model], name=f"language model of {model}")
    checkpoint.load_into(network, KEY_MAP(checkpoint.read(file)))
    return network.eval()
