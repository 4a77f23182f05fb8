"""Pseudo-words for text-to-image models: prompt embeddings of pipelines, their training, files of learned embeddings.

Textual inversion: arXiv 2208.01618. The conventions are those of diffusers (Apache-2.0) and of the A1111 web interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.projector import BACKBONE_OF_WIDTH
from tokenizers_visual.inversion.words import PseudoWords
from zoo import checkpoint
from zoo.checkpoint import CheckpointError


@dataclass(frozen=True)
class PromptEmbeddings:
    """What pipelines take as `prompt_embeds` (B, L, D) and, with two text encoders, `pooled_prompt_embeds` (B, E)."""

    prompt: Tensor
    pooled: Tensor | None = None


def text_encoders(pipeline: Any, backbones: Sequence[str] | None = None) -> list[TransformersPair]:
    """The text encoders of a pipeline of diffusers, one or two, which are frozen.

    Args:
        pipeline: with `text_encoder` and `tokenizer`, and perhaps `text_encoder_2` and `tokenizer_2`.
        backbones: whose token space each has; None: of the published CLIP of its width, from which Stable Diffusion's
            text encoders come.

    Raises:
        ValueError: a text encoder that is none of CLIP's, or another number of them than of backbones.
    """
    suffixes = [suffix for suffix in ("", "_2") if getattr(pipeline, f"text_encoder{suffix}", None) is not None]
    models = [getattr(pipeline, f"text_encoder{suffix}") for suffix in suffixes]
    widths = [getattr(model.config, "hidden_size", 0) for model in models]
    names = [BACKBONE_OF_WIDTH.get(width, "") for width in widths] if backbones is None else list(backbones)
    if not models or len(names) != len(models) or not all(names):
        raise ValueError(f"expected a backbone for each text encoder, got {names} for widths {widths}")
    tokenizers = [getattr(pipeline, f"tokenizer{suffix}") for suffix in suffixes]
    return [
        TransformersPair(model, tokenizer, backbone=name) for model, tokenizer, name in zip(models, tokenizers, names)
    ]


def to_prompt_embeds(
    encoders: Sequence[TransformersPair],
    prompts: str | Sequence[str] | Tensor | Sequence[Tensor],
    words: Sequence[PseudoWords],
    *,
    clip_skip: int | None = None,
) -> PromptEmbeddings:
    """Prompts with pseudo-words as a diffusion pipeline takes them.

    Args:
        encoders: one text encoder (Stable Diffusion 1 and 2), or two (XL), the second with a projection.
        prompts: texts with "$", or the ids of each encoder.
        words: the words for each encoder's token space.
        clip_skip: how many last layers are left out, as in diffusers; None: as the model was trained.

    Raises:
        ValueError: not as many words as encoders, or more layers to skip than there are.
    """
    if len(encoders) not in (1, 2) or len(words) != len(encoders):
        raise ValueError(f"expected words for 1 or 2 encoders, got {len(words)} for {len(encoders)}")
    of_each = prompts if isinstance(prompts, list | tuple) and isinstance(prompts[0], Tensor) else [prompts] * 2
    embedded = [
        pair.embed(given, own)  # type: ignore[arg-type]
        for pair, given, own in zip(encoders, of_each, words)
    ]
    return encode_prompt(encoders, embedded, clip_skip=clip_skip)


def encode_prompt(
    encoders: Sequence[TransformersPair],
    embedded: Sequence[tuple[Tensor, Tensor]],
    *,
    clip_skip: int | None = None,
) -> PromptEmbeddings:
    """As `to_prompt_embeds`, of ids (B, L) and token embeddings (B, L, D) for each encoder.

    One encoder: its chosen layer, after the final norm. Two: the last layer but one (or what `clip_skip` leaves beyond
    it), without the norm, side by side; pooled by the second at the end of text.
    """
    skip = 0 if clip_skip is None else clip_skip
    if len(encoders) == 1:
        layers, output = encoders[0].hidden_states(*embedded[0])
        if skip == 0:
            return PromptEmbeddings(output.hidden)
        return PromptEmbeddings(encoders[0].final_norm(_layer(layers, skip)))
    parts = []
    for pair, given in zip(encoders, embedded):
        layers, output = pair.hidden_states(*given)
        parts.append(_layer(layers, skip + 1))
    return PromptEmbeddings(torch.cat(parts, dim=-1), output.features)


def _layer(layers: Sequence[Tensor], skip: int) -> Tensor:
    if not 0 <= skip < len(layers):
        raise ValueError(f"clip_skip: expected to leave one of {len(layers)} states, got {skip} to skip")
    return layers[-1 - skip]


# -- training ------------------------------------------------------------------------------------------------------


def denoising(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    states: Tensor,
    times: Tensor,
    noise: Tensor,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a frozen U-Net, told the prompts, predicts of noisy latents, and what it should: (B, C, H, W), float32.

    Args:
        unet: `UNet2DConditionModel`.
        scheduler: of diffusers; its `prediction_type` tells what the U-Net predicts.
        latents: (B, C, H, W), scaled as the U-Net takes them.
        states: (B, L, D), `to_prompt_embeds(...).prompt`, through which gradients reach the words.
        times: (B,) of diffusion.
        noise: (B, C, H, W), standard normal.
        beside: (B, C', H, W), what a U-Net that paints in takes behind the noisy latents: a mask, and latents of the
            image without what is to be painted.

    Raises:
        ValueError: a U-Net that predicts neither noise nor velocity.
    """
    noisy = scheduler.add_noise(latents, noise, times)
    entered = noisy if beside is None else torch.cat([noisy, beside], dim=1)
    predicted = unet(entered, times, encoder_hidden_states=states).sample
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"expected a scheduler that predicts epsilon or v_prediction, got {kind!r}")
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, times)
    return predicted.float(), target.float()


def denoising_loss(
    unet: nn.Module, scheduler: Any, latents: Tensor, states: Tensor, times: Tensor, noise: Tensor
) -> Tensor:
    """The loss by which words are learned from images: mean squared error of `denoising`, whose arguments it takes."""
    return F.mse_loss(*denoising(unet, scheduler, latents, states, times, noise))


def denoised(scheduler: Any, latents: Tensor, times: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """The latents (B, C, H, W) that a prediction of `denoising` amounts to, in one step; these are the latents where it
    is right.
    """
    kept = scheduler.alphas_cumprod.to(latents)[times].view(-1, 1, 1, 1)  # the share of latents in the noisy ones
    scale = (1 - kept).sqrt() if scheduler.config.prediction_type == "v_prediction" else ((1 - kept) / kept).sqrt()
    return latents + scale * (target - predicted)


@contextmanager
def cross_attention_maps(unet: nn.Module) -> Iterator[list[Tensor]]:
    """The probabilities (B, heads, pixels, L) of each cross-attention, in the order of their calls in the block.

    They are computed beside the U-Net's own attention, and gradients flow through them.
    """
    maps: list[Tensor] = []

    def watch(attention: Any, stack: ExitStack) -> None:
        queries: list[Tensor] = []

        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            queries.append(output)

        def compare(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            query, key = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (queries.pop(), output))
            maps.append((query @ key.transpose(2, 3) * attention.scale).softmax(-1))

        stack.callback(attention.to_q.register_forward_hook(note).remove)
        stack.callback(attention.to_k.register_forward_hook(compare).remove)

    with ExitStack() as stack:
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                watch(module, stack)
        yield maps


# -- files of learned embeddings -----------------------------------------------------------------------------------


def save_learned_embeddings(path: Path, token: str, words: Tensor) -> None:
    """Write one token's words as `load_textual_inversion` of diffusers reads them.

    Args:
        path: `.safetensors`, or `.bin` (a pickle of tensors alone); or `.pt` for the A1111 web interface.
        token: the name in prompts; bracketed ("<cat>"), so that it is no part of another word.
        words: (n, D).

    Raises:
        ValueError: another suffix, or words of another shape.
    """
    if words.ndim != 2 or len(words) == 0:
        raise ValueError(f"expected words (n, D), got {tuple(words.shape)}")
    plain = words.detach().cpu().contiguous()
    if path.suffix == ".safetensors":
        checkpoint.save(path, {token: plain}, {"format": "pt"})
    elif path.suffix == ".bin":
        _pickled({token: plain}, path)
    elif path.suffix == ".pt":
        _pickled({"string_to_token": {"*": 265}, "string_to_param": {"*": plain}, "name": token, "step": 0}, path)
    else:
        raise ValueError(f"{path}: expected a name in .safetensors, .bin or .pt")


def load_learned_embeddings(path: Path) -> dict[str, Tensor]:
    """Read a file of learned embeddings, of any of the layouts in use; no code in it is run.

    Returns:
        Token, or for a file without one what the file calls its tensor (`emb_params`; `clip_l` and `clip_g` of the two
        encoders of XL) -> words (n, D).

    Raises:
        CheckpointError: no such file.
    """
    if path.suffix != ".safetensors":
        content = _pickle(path)
        if "string_to_param" in content:
            (words,) = content["string_to_param"].values()
            return {str(content.get("name") or path.stem): _words(words, path)}
    return {name: _words(value, path) for name, value in checkpoint.read(path).items()}


def _pickled(content: Mapping[str, Any], path: Path) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        torch.save(dict(content), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pickle(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: expected a file of learned embeddings: {error}") from error
    return content if isinstance(content, Mapping) else {}


def _words(value: Tensor, path: Path) -> Tensor:
    words = value.detach()
    words = words[None] if words.ndim == 1 else words
    if words.ndim != 2:
        raise CheckpointError(f"{path}: expected words (n, D), got {tuple(words.shape)}")
    return words
