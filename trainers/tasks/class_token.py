"""Training of a word by what a classifier says of the images that a frozen diffusion pipeline makes with it.

Discriminative Class Tokens (ICCV 2023; original idansc/discriminative_class_tokens, MIT).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tokenizers_visual.inversion import discriminative_class_tokens as method
from tokenizers_visual.inversion.clip import PLACEHOLDER
from tokenizers_visual.inversion.diffusion import encode_prompt, save_learned_embeddings
from tokenizers_visual.inversion.textual_inversion import LearnedWords
from trainers.tasks.pipeline import PipelineTask


class ClassTokenTask(PipelineTask):
    """Batches are numbers of noises (B,), as `NoiseData` gives them; no images are needed.

    loss = cross entropy of the classifier with the class, over the images that the pipeline makes of these noises; the
    gradient flows through the last step of generation alone. `accuracy` is the share that the classifier takes for the
    class. `ExportModel` writes `learned_embeds.safetensors`, as diffusers loads it, beside the model.

    Args:
        model: name of a model of learned words in the zoo.
        pipeline: see `PipelineTask`.
        class_name: of the class, as prompts name it.
        label: of the class, as the classifier counts it, from 0.
        classifier: see `load_classifier`.
        initial: a token each, from which the words start.
        token: name of the words in the file of learned embeddings.
        changes: config fields to change; `backbone` and `word_dim` become those of the pipeline's text encoder.
        templates: prompts with "$", behind which the name of the class is put; noises take them in turn.
        size: height and width of the images in pixels.
        steps, guidance: of generation.
        noise_seed: of the first noise; each further one has the next.
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        pipeline: str,
        class_name: str,
        label: int,
        model: str = "discriminative_class_tokens",
        classifier: str = "google/vit-large-patch16-224",
        initial: str = "a",
        token: str = "<class>",
        changes: dict[str, Any] | None = None,
        templates: tuple[str, ...] = method.TEMPLATES,
        size: int = 512,
        steps: int = method.STEPS,
        guidance: float = method.GUIDANCE,
        noise_seed: int = 35,
        **optimizer: Any,
    ) -> None:
        super().__init__(pipeline, **optimizer)
        self.save_hyperparameters()
        self._require(all(text.count(PLACEHOLDER) == 1 for text in templates), "templates", "one $ in each", templates)
        self._require(label >= 0, "label", "a class, counted from 0", label)
        self.prompts = [method.prompt(class_name, template) for template in templates]
        self.label, self.classifier_name, self.token = label, classifier, token
        self.size, self.steps, self.guidance, self.noise_seed = size, steps, guidance, noise_seed
        fields = {"backbone": pipeline, "word_dim": self.pair.embedding.weight.shape[1], **(changes or {})}  # type: ignore[union-attr, index]
        self.model: Any = zoo.create_model(model, **fields)
        self._require(isinstance(self.model, LearnedWords), "model", "learned words", model)
        self.model.start_from(self.pair, self.ids_of(initial))

    @cached_property
    def _classifiers(self) -> list[nn.Module]:
        """The classifier, in a list, for it is no part of the task's own weights."""
        return [method.load_classifier(self.classifier_name)]

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        images = self.images(batch.tolist())
        logits = method.classify(self._classifiers[0], images)
        self._require(self.label < logits.shape[1], "label", f"one of {logits.shape[1]} classes", self.label)
        hits = (logits.argmax(1) == self.label).float().mean()
        return {"total": method.class_loss(logits, self.label), "accuracy": hits}

    def images(self, numbers: list[int]) -> Tensor:
        """The pipeline's images (B, 3, H, W) in [-1, 1] of some noises, with gradients to the words."""
        pipeline, pair, _ = self._parts
        prompts = [self.prompts[number % len(self.prompts)] for number in numbers]
        ids, embeddings = pair.embed(prompts, self.model())
        empty = pair.tokenize([""] * len(prompts))
        length = int((ids == pair.end_id).int().argmax(1).max()) + 1  # prompts are padded to the longest alone
        states, unconditional = (
            encode_prompt([pair], [given]).prompt[:, :length]
            for given in ((ids, embeddings), (empty, pair.token_embeddings(empty)))
        )
        unet = pipeline.unet
        side = self.size // pipeline.vae_scale_factor
        noise = torch.stack([self._noise(number, (unet.config.in_channels, side, side)) for number in numbers])
        latents = method.generate(
            lambda latents, time, states: unet(latents, time, encoder_hidden_states=states).sample,
            pipeline.scheduler, states, unconditional, noise, steps=self.steps, guidance=self.guidance,
        )  # fmt: skip
        return self.decoded(latents)

    def _noise(self, number: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed + number)
        return torch.randn(shape, generator=generator).to(self.device)

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        losses = self.losses(batch)
        both: dict[str, Any] = {"on_step": True, "on_epoch": True, "batch_size": len(batch)}  # an epoch's ends the run
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, **both)
        return losses["total"]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._classifiers[0].to(self.device)

    def export_beside(self, folder: Path) -> None:
        """Write the words into the folder of the exported model as diffusers loads them (see `ExportModel`)."""
        words = self.model().embeddings[0].detach()
        save_learned_embeddings(folder / "learned_embeds.safetensors", self.token, words)
