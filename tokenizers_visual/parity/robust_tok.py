"""Checks of robust_tok's fixtures: training with given perturbation or dropout of scales, its teacher, its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenizers_visual import robust_tok
from zoo import checkpoint
from zoo.parity import Case, Fixture, FixtureError, Named, channels_first, gradient, weighted_sum
from zoo.quantizers import MultiScale, Quantized, VectorConfig
from zoo.quantizers.latent_perturbation import Draws, PerturbationConfig, near_codes, perturb
from zoo.registry import Family
from zoo.tokens import Tokens


def case(fixture: Fixture, family: Family) -> Any:
    """The case of a fixture of the whole model, or of the perturbation alone."""
    if "enc_type" in fixture.meta["original"]["kwargs"]:
        return RobustTokCase(fixture, family)
    return PerturbationCase(fixture)


class RobustTokCase(Case):
    """Indices of one codebook are flat; those of several scales or branches stand in an array for each branch. The
    original clamps reconstructions, but not in training."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        self.config: Any = self.model.config
        self.scaled = self.model.layout == "scales"

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["image"])
        with torch.no_grad():
            latent = self.model.latent(inputs["image"])
            quantized = self.model.quantizer(latent)
        return {
            "indices": tokens.levels[0].flatten(),
            **{f"indices.branch{p}": self._of_branch(tokens.levels, p) for p in range(self.config.branches)},
            "latent": self._as_stated(latent),
            "quantized": channels_first(quantized.codes),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = self.model.decode(self._tokens(inputs))
        return {"image": image.clamp(-1, 1) if settings.get("clamp", True) else image}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["image"])
        if "scales" in settings:
            tokens = tokens.truncate(settings["scales"] * self.config.branches)
        return {"image": self.model.decode(tokens).clamp(-1, 1)}

    def teacher(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config = self.config
        sizes = robust_tok.transformer_from_original(self.meta["original"], "encoder")
        teacher = robust_tok.SemanticTeacher(config.image_size, config.patch_size, sizes).eval()
        checkpoint.load_into(teacher, robust_tok.TEACHER_KEY_MAP(self.fixture.weights))
        with torch.no_grad():
            return {"feature": teacher(inputs["image"])}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, kwargs = inputs["image"], robust_tok.original_arguments(self.meta)
        feature = self.teacher(inputs, settings)["feature"]
        model.train()
        excluded = int(len(image) * settings.get("codebook_drop", kwargs["codebook_drop"]))
        if self.scaled:
            self._give_counts(inputs["dropout"][:excluded])
        latent = model.latent(image)
        latent.retain_grad()
        clean = quantized = model.quantizer(latent)
        if not self.scaled and self.config.branches == 1:
            quantized = perturb(model.quantizer, latent, clean, *_perturbation(inputs, settings, latent))
        reconstruction = model.reconstruct(quantized.codes)
        semantic = robust_tok.semantic_loss(
            model,
            feature[excluded:],
            quantized.codes[excluded:],
            scale=_semantic_scale(kwargs, settings.get("epoch", 0)),
            cosines=kwargs["clip_norm"],
        )
        losses = {
            **self.original_losses(clean),
            "loss.sem": kwargs["sem_loss_weight"] * semantic,
            "loss.l2": (reconstruction - image).square().mean(),
        }
        losses["loss.total"] = weighted_sum(losses, settings["total"])
        losses["loss.total"].backward()
        hits = self._hits(clean, settings["world_size"])
        return {
            **losses,
            "image": reconstruction,
            "grad.latent": self._as_stated(gradient(latent)),
            **self.gradients(),
            **hits,
        }

    def _give_counts(self, drawn: Tensor) -> None:
        """Lets the groups use as many scales as the fixture drew for the first items."""
        first: Any = self.model.quantizer.groups[0]  # type: ignore[union-attr, index]
        if not isinstance(first, MultiScale):
            raise FixtureError(f"expected groups of several scales, got {type(first).__name__}")
        most = len(first.config.ladder)
        first.draw_items = lambda items: torch.cat([drawn, torch.full((items - len(drawn),), most)])  # type: ignore[method-assign]

    def _hits(self, quantized: Quantized, world_size: int) -> Named:
        """The original's running use of the codes after one step, and the share in percent that passes its threshold.

        A quantizer of several scales takes each scale for a step, from the second on with a tenth of its hits.
        """
        first, latents = quantized.levels[0], quantized.codes.shape[:3].numel()
        size, branches = self.model.vocab_sizes[0], self.config.branches
        counts = torch.stack([torch.bincount(level.flatten(), minlength=size) for level in quantized.levels]).float()
        if not self.scaled:
            used = counts >= world_size * first.numel() / size * 0.08
            return {"hits": counts[0], "usage": 100 * used.float().mean()}
        before = torch.stack([self.fixture.weights[f"quantizes.{p}.ema_vocab_hit_SV"] for p in range(branches)])
        counts = counts.unflatten(0, (-1, branches)).transpose(0, 1)
        counts[:, 1:] = 0.9 * before[:, 1:] + 0.1 * counts[:, 1:]
        used = counts >= world_size * latents / size * 0.08
        return {"usage": 100 * used.float().mean(-1).mean(0)}

    def _as_stated(self, latent: Tensor) -> Tensor:
        """(B, s, s, P * C) -> (B, C, s, s), or (B, C, P * s * s, 1) of several branches."""
        if self.config.branches == 1:
            return channels_first(latent)
        rows = latent.flatten(1, 2).unflatten(-1, (self.config.branches, -1))
        return rows.permute(0, 3, 2, 1).flatten(2)[..., None]

    def _of_branch(self, levels: tuple[Tensor, ...], branch: int) -> Tensor:
        return torch.cat([level.flatten(1) for level in levels[branch :: self.config.branches]], dim=1)

    def _tokens(self, inputs: Named) -> Tokens:
        branches, shapes = self.config.branches, self.model.token_shapes(self.model.spec.size or ())
        if "indices" in inputs:
            return self.model.tokens(inputs["indices"].view(-1, *shapes[0]))
        rows = [inputs[f"indices.branch{p}"] for p in range(branches)]
        if not self.scaled:
            return self.model.tokens(torch.stack([row.unflatten(1, shapes[0]) for row in rows], dim=1))
        parts = [row.split([height * width for height, width in shapes[::branches]], dim=1) for row in rows]
        return self.model.tokens(torch.cat([part for scale in zip(*parts) for part in scale], dim=1))


def _semantic_scale(kwargs: dict[str, Any], epoch: int) -> float:
    """Of the logits; cosines begin with the stated scale, and reach 100 in 200 epochs."""
    scale = kwargs["sem_loss_scale"]
    return scale + min(epoch / 200, 1.0) * (100 - scale) if kwargs["clip_norm"] else scale


class PerturbationCase:
    """The perturbation of given latents; the fixture's weights are a codebook."""

    def __init__(self, fixture: Fixture) -> None:
        self.codebook = fixture.weights["embedding.weight"]

    def perturb(self, inputs: Named, settings: dict[str, Any]) -> Named:
        metric: Any = "cosine" if settings["codebook_norm"] else "euclidean"
        size, dim = self.codebook.shape
        quantizer: Any = VectorConfig(size, dim, metric).build()
        checkpoint.load_into(quantizer, {"codebook.weight": self.codebook})
        latent, given = (inputs[name].movedim(1, -1).requires_grad_() for name in ("latent", "quantised"))
        clean = quantizer(latent)
        count = int(len(latent) * settings["beta"])
        # the fixture's codes are arbitrary; where they are not replaced they pass
        codes = torch.cat([clean.codes[:count], given[count:]])
        near = near_codes(quantizer, latent, clean.levels, 0, settings["delta"])
        arguments = _perturbation(inputs, settings, latent)
        found = perturb(quantizer, latent, Quantized(codes, clean.levels), *arguments)
        (found.codes * inputs["cotangent"].movedim(1, -1)).sum().backward()
        return {
            "perturbed": channels_first(found.codes),
            "topk": near,
            "grad.latent": channels_first(gradient(latent)),
            "grad.quantized": channels_first(gradient(given)),
        }

    def schedule(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config = PerturbationConfig(
            neighbours=settings["delta"],
            decline_start=settings["anneal_start"],
            decline_end=settings["anneal_end"],
            final_strength=settings["end_ratio"],
        )
        return {
            "ratio": torch.tensor([config.strength(epoch) for epoch in range(201)]),
            "delta": torch.tensor([config.neighbours_at(epoch) for epoch in range(201)]),
        }


def _perturbation(
    inputs: Named, settings: dict[str, Any], latent: Tensor
) -> tuple[PerturbationConfig, int, tuple[Draws]]:
    """The settings of a check, the step, and its draws for the first items."""
    config = PerturbationConfig(settings["alpha"], settings["beta"], settings["delta"])
    tokens = int(len(latent) * config.share) * latent[0, ..., 0].numel()
    return config, 0, (Draws(inputs["rand_prob"][:tokens], inputs["rand_idx"][:tokens]),)
