"""The CLIPs of open_clip and transformers as a `ClipPair`.

CLIP: arXiv 2103.00020. The library's own forward runs; only the looked-up token embeddings are exchanged.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.hooks import outputs_of
from tokenizers_visual.inversion.pair import PLACEHOLDER, ClipPair, Fill, TextOutput

__all__ = ["PLACEHOLDER", "ClipPair", "Fill", "OpenClipPair", "TextOutput", "TransformersPair"]

# open_clip's (architecture, weights) of which the hub holds the same in transformers' layout
_HUB_NAMES = {
    ("ViT-B-32", "openai"): "openai/clip-vit-base-patch32",
    ("ViT-B-16", "openai"): "openai/clip-vit-base-patch16",
    ("ViT-L-14", "openai"): "openai/clip-vit-large-patch14",
    ("ViT-L-14-336", "openai"): "openai/clip-vit-large-patch14-336",
    ("ViT-H-14", "laion2b_s32b_b79k"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("ViT-bigG-14", "laion2b_s39b_b160k"): "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
}


class OpenClipPair(ClipPair):
    """A model of open_clip, of any architecture: CLIP, CoCa, SigLIP, those whose texts go through one of transformers.

    Args:
        model: `open_clip.CLIP`, `open_clip.CustomTextCLIP` or `open_clip.CoCa`.
        tokenizer: `open_clip.SimpleTokenizer` or `open_clip.tokenizer.HFTokenizer`, or None.
        backbone, placeholder_id: see `ClipPair`.

    Raises:
        ValueError: a text encoder whose features are not those of a text, a tokenizer that drops the end of text, or a
            program of TorchScript.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, backbone: str, placeholder_id: int | None = None) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise ValueError("expected a module, got a program of TorchScript, whose embeddings cannot be exchanged")
        tower = getattr(model, "text", model)
        self_contained = hasattr(tower, "token_embedding")  # else the encoder is one of transformers
        table = tower.token_embedding if self_contained else tower.transformer.get_input_embeddings()
        pooling = getattr(tower, "pool_type", getattr(tower, "text_pool_type", "argmax")) if self_contained else ""
        if pooling == "none":
            raise ValueError(f"expected a text encoder that gives one feature of a text, got pooling {pooling!r}")
        texts = _open_clip_texts(tokenizer)
        if tokenizer is None and pooling == "argmax" and getattr(tower, "cls_emb", None) is None:
            texts = {"start_id": table.num_embeddings - 2, "end_id": table.num_embeddings - 1}
        elif tokenizer is None:
            end = "text_eos_id" if tower is model else "eos_id"
            texts["end_id"] = getattr(tower, end) if pooling == "eos" else None
        if placeholder_id is None:
            placeholder_id = texts.pop("placeholder_id", None)
        texts.pop("placeholder_id", None)
        super().__init__(
            model,
            backbone=backbone,
            embedding=table,
            context_length=min(
                tower.context_length, getattr(tokenizer, "context_length", None) or tower.context_length
            ),
            placeholder_id=placeholder_id,
            **texts,
        )
        self._tower = [tower]

    @classmethod
    def load(cls, architecture: str, weights: str | None = None, **options: Any) -> Self:
        """One of open_clip's models, such as ("ViT-L-14", "openai"); `options` go to `open_clip.create_model`.

        Raises:
            ValueError: no such model, or its tokenizer cannot be had.
        """
        import open_clip

        model = open_clip.create_model(architecture, weights, **options)
        try:
            tokenizer = open_clip.get_tokenizer(architecture)
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(
                f"expected the tokenizer of {architecture}, as its config names it, and it cannot be had "
                f"({str(error).splitlines()[0]}); OpenClipPair(model, tokenizer, backbone=...) takes one at hand"
            ) from error
        plain = architecture.removesuffix("-quickgelu")
        backbone = _HUB_NAMES.get((plain, weights or ""), f"open_clip:{architecture}/{weights}")
        return cls(model, tokenizer, backbone=backbone)

    def image_features(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=False)  # type: ignore[operator]

    def image_tokens(self, images: Tensor) -> Tensor:
        """See `ClipPair`; of a convolutional encoder the positions of its last feature map, row by row."""
        visual: Any = self.model.visual
        trunk = getattr(visual, "trunk", visual)  # of timm
        layers = next((name for name in ("transformer", "blocks", "layer4", "stages") if hasattr(trunk, name)), None)
        if layers is None:
            raise ValueError(f"expected an image encoder with tokens or a feature map, got {type(trunk).__name__}")
        with outputs_of(getattr(trunk, layers)) as outputs:
            self.image_features(images)
        last = outputs[0]
        return last.flatten(2).transpose(1, 2) if last.ndim == 4 else last

    def joint_tokens(self, tokens: Tensor) -> Tensor:
        visual: Any = self.model.visual
        if not hasattr(visual, "ln_post") or getattr(visual, "proj", None) is None:
            return super().joint_tokens(tokens)
        return visual.ln_post(tokens) @ visual.proj

    def joint_hidden(self, hidden: Tensor) -> Tensor:
        projection = self._tower[0].text_projection
        return projection(hidden) if isinstance(projection, nn.Module) else hidden @ projection

    def _text(self, ids: Tensor) -> TextOutput:
        tower = self._tower[0]
        if not hasattr(tower, "ln_final"):  # of transformers
            with outputs_of(tower.transformer) as outputs:
                features = self.model.encode_text(ids, normalize=False)  # type: ignore[operator]
            return TextOutput(features, outputs[0].last_hidden_state)  # type: ignore[attr-defined]
        appended = getattr(tower, "cls_emb", None) is not None  # CoCa's features are pooled behind the text
        with outputs_of(tower.transformer if appended else tower.ln_final) as outputs:
            features = self.model.encode_text(ids, normalize=False)  # type: ignore[operator]
        return TextOutput(features, tower.ln_final(outputs[0][:, :-1]) if appended else outputs[0])


def _open_clip_texts(tokenizer: Any) -> dict[str, Any]:
    """What a `ClipPair` takes of a tokenizer of open_clip: ids, and functions from texts to ids and back."""
    if tokenizer is None:
        return {"start_id": None, "end_id": None}
    if not hasattr(tokenizer, "tokenizer"):  # CLIP's own
        return {
            "start_id": tokenizer.sot_token_id,
            "end_id": tokenizer.eot_token_id,
            "encode": tokenizer.encode,
            "decode": getattr(tokenizer, "decode", None),
        }
    inner = tokenizer.tokenizer  # of transformers
    if getattr(tokenizer, "strip_sep_token", False) or getattr(tokenizer, "tokenizer_mode", ""):
        raise ValueError("expected a tokenizer that keeps the end of text, got one that strips or moves it")
    clean = getattr(tokenizer, "clean_fn", str)
    frame = inner("")["input_ids"]  # start and end, or the end alone

    def encode(text: str) -> list[int]:
        space = " " if text[:1].isspace() else ""  # which byte-level vocabularies tell apart
        return inner(space + clean(text), add_special_tokens=False)["input_ids"]

    return {
        "start_id": frame[0] if len(frame) > 1 else None,
        "end_id": frame[-1],
        "pad_id": inner.pad_token_id,
        "placeholder_id": inner(PLACEHOLDER, add_special_tokens=False)["input_ids"][-1],
        "encode": encode,
        "decode": inner.decode,
    }


class TransformersPair(ClipPair):
    """A CLIP of transformers, or the text encoder of one alone, as diffusion models have it.

    Args:
        model: `transformers.CLIPModel`, `CLIPTextModelWithProjection`, or `CLIPTextModel`, whose features are not
            projected.
        tokenizer: `transformers.CLIPTokenizer`, or None.
        backbone, placeholder_id: see `ClipPair`.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, backbone: str, placeholder_id: int | None = None) -> None:
        tower = getattr(model, "text_model", model)
        config, table = tower.config, tower.embeddings.token_embedding
        legacy = config.eos_token_id == 2  # old configs state a wrong id, and pool at the largest
        end_id = table.num_embeddings - 1 if legacy else config.eos_token_id
        super().__init__(
            model,
            backbone=backbone,
            embedding=table,
            context_length=config.max_position_embeddings,
            start_id=tokenizer.bos_token_id if tokenizer else end_id - 1,
            end_id=tokenizer.eos_token_id if tokenizer else end_id,
            placeholder_id=placeholder_id,
            encode=(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]) if tokenizer else None,
            decode=getattr(tokenizer, "decode", None),
            pad_id=tokenizer.pad_token_id if tokenizer else 0,
        )
        self._tower, self._projection = [tower], [getattr(model, "text_projection", nn.Identity())]

    @classmethod
    def load(cls, repository: str, **options: Any) -> Self:
        """A CLIP of the hub or a folder, such as "openai/clip-vit-large-patch14"; `options` go to `from_pretrained`."""
        from transformers import CLIPModel, CLIPTokenizer

        model, tokenizer = CLIPModel.from_pretrained(repository, **options), CLIPTokenizer.from_pretrained(repository)
        return cls(model, tokenizer, backbone=repository)

    def image_features(self, images: Tensor) -> Tensor:
        pooled = self._image(images).pooler_output
        return self.model.visual_projection(pooled)  # type: ignore[operator]

    def image_tokens(self, images: Tensor) -> Tensor:
        return self._image(images).last_hidden_state

    def joint_tokens(self, tokens: Tensor) -> Tensor:
        normed = self.model.vision_model.post_layernorm(tokens)  # type: ignore[union-attr, operator]
        return self.model.visual_projection(normed)  # type: ignore[operator]

    def joint_hidden(self, hidden: Tensor) -> Tensor:
        return self._projection[0](hidden)

    def _image(self, images: Tensor) -> Any:
        if not hasattr(self.model, "vision_model"):
            raise ValueError(f"expected a model with an image encoder, got {type(self.model).__name__}")
        return self.model.vision_model(pixel_values=images)  # type: ignore[operator]

    def hidden_states(self, ids: Tensor, embeddings: Tensor | None = None) -> tuple[tuple[Tensor, ...], TextOutput]:
        """What goes into the first layer of the text encoder, and what each layer gives, (B, L, D), before the final
        norm; and the output as ever."""
        tower = self._tower[0]
        with ExitStack() as stack:
            kept = [stack.enter_context(outputs_of(part)) for part in (tower.embeddings, *tower.encoder.layers)]
            output = self.encode_text(ids, embeddings)
        return tuple(part[0][0] if isinstance(part[0], tuple) else part[0] for part in kept), output

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm behind the last layer."""
        return self._tower[0].final_layer_norm(hidden)

    def _text(self, ids: Tensor) -> TextOutput:
        hidden = self._tower[0](input_ids=ids).last_hidden_state
        ends = (ids == self.end_id).int().argmax(1)  # the first
        pooled = hidden[torch.arange(len(ids), device=ids.device), ends]
        return TextOutput(self._projection[0](pooled), hidden)
