"""Training of a dictionary that images and texts share: FDT (arXiv 2303.14865), from images with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

import zoo
from tokenizers_visual.inversion.fdt import FDT, MEAN, STD, FDTTextEncoder
from trainers.data.rows import CaptionedImages
from trainers.tasks.scheduled import ScheduledTask
from zoo import checkpoint
from zoo.ops.collective import joined_over_ranks


class DictionaryTask(ScheduledTask):
    """Batches are `CaptionedImages`: what the dictionary says of each image finds what it says of its own text.

    Image encoder, text encoder, queries and dictionary all learn, from scratch. In a distributed run the images and
    texts of all processes are compared. `ExportModel` writes the text encoder as `text_encoder.safetensors` beside the
    model, which takes words as given.

    Args:
        model: name of an FDT in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or a file of the model's weights.
        text_layers, text_heads: of the text encoder, which is as wide as the model's words.
        scale_range: the natural logarithm of what cosines are multiplied by is kept within it.
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        model: str = "fdt",
        changes: dict[str, Any] | None = None,
        init: str = "random",
        text_layers: int = 12,
        text_heads: int = 8,
        scale_range: tuple[float, float] = (3.0, 6.0),
        **optimizer: Any,
    ) -> None:
        super().__init__(**optimizer)
        self.save_hyperparameters()
        self._require(init == "random" or Path(init).is_file(), "init", "random or a file", init)
        self._require(scale_range[0] <= scale_range[1], "scale_range", "the least value first", scale_range)
        self.scale_range = scale_range
        arguments: dict[str, Any] = {} if init == "random" else {"checkpoint": init}
        created = zoo.create_model(model, **arguments, **(changes or {}))
        if not isinstance(created, FDT):
            raise ValueError(f"model: expected an FDT, got {model}")
        self.model: FDT = created
        for part in (self.model.visual.ln_post, self.model.visual.proj):  # of the class token, which no loss sees
            part.requires_grad_(False)
        self.text_encoder = FDTTextEncoder(self.model.config.text_dim, text_layers, text_heads)

    def trained(self) -> nn.Module:
        return self

    def losses(self, batch: CaptionedImages) -> dict[str, Tensor]:
        patches, _ = self.model.image_features(normalize(batch.images, list(MEAN), list(STD)))
        words, padding = self.text_encoder(batch.texts)
        images = self.model.ground(patches, "image").features
        texts = self.model.ground(words, "text", padding).features
        losses = self.model.losses(joined_over_ranks(images), joined_over_ranks(texts))
        return {"total": (losses["image"] + losses["text"]) / 2, **losses}

    @torch.no_grad()
    def after_step(self) -> None:
        self.model.logit_scale.clamp_(*self.scale_range)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.after_step()  # in the first step, whose scale may lie outside

    def export_beside(self, folder: Path) -> None:
        """Write the text encoder into the folder of the exported model (see `ExportModel`)."""
        state = {name: value.detach().cpu() for name, value in self.text_encoder.state_dict().items()}
        checkpoint.save(folder / "text_encoder.safetensors", state, {"format": "pt"})
