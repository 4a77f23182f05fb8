"""Training of words that mean one concept, from a few images of it, through a diffusion pipeline that stays frozen.

Textual inversion (arXiv 2208.01618), BaTex, CoRe (arXiv 2408.15914), Inspiration Tree and NeTI (arXiv 2305.15391).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from tokenizers_visual.inversion.batex import BaTex
from tokenizers_visual.inversion.clip import PLACEHOLDER, TextOutput
from tokenizers_visual.inversion.core_ti import context_attention_loss, context_embedding_loss
from tokenizers_visual.inversion.diffusion import (
    cross_attention_maps,
    denoising_loss,
    encode_prompt,
    save_learned_embeddings,
)
from tokenizers_visual.inversion.inspiration_tree import timestep_weights
from tokenizers_visual.inversion.layered_prompts import layered_prompts
from tokenizers_visual.inversion.neti import Conditioning, NeTI
from tokenizers_visual.inversion.textual_inversion import LearnedWords, rescaled
from trainers.tasks.pipeline import PipelineTask


class PersonalisationTask(PipelineTask):
    """Batches are images (B, 3, H, W) in [0, 1] of one concept, as `ImageData` gives them; prompts are drawn here.

    loss = how badly the U-Net denoises the images' latents, told the prompts, and the weighted regularisers. The
    pipeline is no part of checkpoints. `ExportModel` writes `learned_embeds.safetensors`, as diffusers loads it, beside
    the model, unless the words depend on time and layer (NeTI).

    Args:
        model: name of a model in the zoo: textual_inversion, core_ti, inspiration_tree, batex or neti.
        pipeline: a Stable Diffusion 1 or 2, as a hub repository or a folder of diffusers.
        initial: what the concept is, or several words for several that are learned; a token each. Learned words start
            there, a basis is chosen around it, and NeTI's have its norm.
        token: name of the words in the file of learned embeddings.
        changes: config fields to change; `backbone` and `word_dim` become those of the pipeline's text encoder.
        templates: prompts with "$"; None: the simple ones of ImageNet in open_clip.
        time_slope: how much more often noisy times are drawn (Inspiration Tree).
        sum_weight: of BaTex's regulariser.
        context_weight, attention_weight: of CoRe's regularisers, which compare with `initial` in the word's place.
        rescale: keep the norm of the words at that of `initial` (CoRe).
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        model: str,
        pipeline: str,
        initial: str = "object",
        token: str = "<concept>",
        changes: dict[str, Any] | None = None,
        templates: list[str] | None = None,
        time_slope: float = 0.0,
        sum_weight: float = 0.0,
        context_weight: float = 0.0,
        attention_weight: float = 0.0,
        rescale: bool = False,
        **optimizer: Any,
    ) -> None:
        super().__init__(pipeline, **optimizer)
        self.save_hyperparameters()
        self.token = token
        self.sum_weight, self.context_weight, self.attention_weight = sum_weight, context_weight, attention_weight
        self.templates = templates or _simple_templates()
        for template in self.templates:
            if template.count(PLACEHOLDER) != 1:
                raise ValueError(f"templates: expected one {PLACEHOLDER} in each, got {template!r}")
        self.register_buffer("time_weights", timestep_weights(slope=time_slope), persistent=False)
        self.initial = self.ids_of(initial)
        self.model: Any = self._created(model, changes or {})
        compares = bool(context_weight or attention_weight or rescale)
        if compares and (not isinstance(self.model, LearnedWords) or self.model.config.words != 1):
            raise ValueError(f"context_weight, attention_weight, rescale: expected a model of one word, got {model}")
        self.real_norm = self.pair.token_embeddings(self.initial)[0].detach() if rescale else None

    def _created(self, name: str, changes: dict[str, Any]) -> Any:
        table: Tensor = self.pair.embedding.weight.detach()  # type: ignore[assignment, operator]
        changes = {"backbone": self.pipeline_name, "word_dim": table.shape[1], **changes}
        if name.partition(".")[0] == "neti":
            layers = sum(part.endswith("attn2") for part, _ in self.pipeline.unet.named_modules())
            norm = float(table[self.initial[0]].norm())
            changes = {"layers": layers, "norm": norm, **changes}
        model = zoo.create_model(name, **changes)
        if not isinstance(model, LearnedWords | BaTex | NeTI):
            raise ValueError(f"model: expected words of one concept, got {name}")
        if isinstance(model, LearnedWords):
            model.start_from(self.pair, self.initial)
        elif len(self.initial) != 1:
            raise ValueError(f"initial: expected one token, got {len(self.initial)}")
        elif isinstance(model, BaTex):
            started = BaTex.from_vocabulary(model.config, table, int(self.initial))
            model.load_state_dict(started.state_dict())
        return model

    # -- the loss --------------------------------------------------------------------------------------------------

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """The losses of images (B, 3, H, W) in [0, 1] by name; `total` is the one that is minimised."""
        latents = self.latents(images)
        noise = torch.randn_like(latents)
        times = torch.multinomial(self.time_weights, len(images), replacement=True)
        chosen = torch.randint(len(self.templates), (len(images),))
        prompts = [self.templates[place] for place in chosen.tolist()]
        if isinstance(self.model, NeTI):
            return {"total": self._layered(latents, noise, times, prompts)}
        return self._plain(latents, noise, times, prompts)

    def _plain(self, latents: Tensor, noise: Tensor, times: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        pipeline, pair, scheduler = self._parts
        ids, embeddings = pair.embed(prompts, self.model())
        states = encode_prompt([pair], [(ids, embeddings)]).prompt
        with ExitStack() as stack:
            maps = stack.enter_context(cross_attention_maps(pipeline.unet)) if self.attention_weight else []
            denoising = denoising_loss(pipeline.unet, scheduler, latents, states, times, noise)
        total, losses = denoising, {"denoising": denoising}
        if self.sum_weight and isinstance(self.model, BaTex):
            losses["sum"] = self.model.regulariser()
            total = total + self.sum_weight * losses["sum"]
        if self.context_weight or self.attention_weight:
            word = ids == pair.placeholder_id
            special = (ids == pair.start_id) | ((ids == pair.end_id).cumsum(1) > 0)
            reference = ids.masked_fill(word, int(self.initial))
            with torch.no_grad():
                plain = encode_prompt([pair], [(reference, pair.token_embeddings(reference))]).prompt
            context = ~(word | special)
            losses["context"] = context_embedding_loss(states, plain, context)
            total = total + self.context_weight * losses["context"]
        if self.attention_weight:
            with torch.no_grad(), cross_attention_maps(pipeline.unet) as plain_maps:
                pipeline.unet(scheduler.add_noise(latents, noise, times), times, encoder_hidden_states=plain)
            of_layers = [context_attention_loss(one, other, context) for one, other in zip(maps, plain_maps)]
            losses["attention"] = torch.stack(of_layers).mean()
            total = total + self.attention_weight * losses["attention"]
        return {"total": total, **losses}

    def _layered(self, latents: Tensor, noise: Tensor, times: Tensor, prompts: list[str]) -> Tensor:
        """Each cross-attention layer has words of its own, which are drawn shorter for it alone."""
        pipeline, pair, scheduler = self._parts
        layers = [
            self.model.compose(pair, prompts, self.model.words(self.model(times, torch.full_like(times, layer))))
            for layer in range(self.model.config.layers)
        ]
        values = []
        for item in range(len(latents)):
            own, place = [_item(layer, item) for layer in layers], slice(item, item + 1)
            with layered_prompts(pipeline.unet, lambda _, own=own: own):  # type: ignore[misc]
                values.append(
                    denoising_loss(
                        pipeline.unet, scheduler, latents[place], own[0].keys.hidden, times[place], noise[place]
                    )
                )
        return torch.stack(values).mean()

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self) -> None:
        if self.real_norm is not None:
            self.model.rows.copy_(rescaled(self.model.rows, self.real_norm.to(self.model.rows)))

    def export_beside(self, folder: Path) -> None:
        """Write the words into the folder of the exported model as diffusers loads them (see `ExportModel`)."""
        if not isinstance(self.model, NeTI):
            words = self.model().embeddings[0].detach()
            save_learned_embeddings(folder / "learned_embeds.safetensors", self.token, words)


def _item(prompts: Conditioning, item: int) -> Conditioning:
    """One item of a layer's prompts, as a batch of one."""
    keys, values = (
        TextOutput(side.features[item : item + 1], side.hidden[item : item + 1])
        for side in (prompts.keys, prompts.values)
    )
    return Conditioning(keys, values)


def _simple_templates() -> list[str]:
    import open_clip

    return [template(PLACEHOLDER) for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
