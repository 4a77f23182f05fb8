"""Checks of speechtokenizer's and dm_codec's fixtures that go beyond the tokenizer: levels apart, training losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.losses.distillation import SemanticDistillation, along_features, along_time, combined
from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers.composite import prefix_codes
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of both families."""
    return SemanticCodecCase(fixture, family)


class SemanticCodecCase(Case):
    """Indices are (codebooks, B, T). `start_codebook` leaves out levels: the others then code the latent itself."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        original = self.meta["original"]["kwargs"]["config"]
        self.distillation = SemanticDistillation(original["dimension"], original["semantic_dimension"])
        weights = {
            key.partition(".")[2]: fixture.weights[key] for key in fixture.weights if key.startswith("transform.")
        }
        self.distillation.projection.load_state_dict(weights)

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        start = settings.get("start_codebook", 0)
        tokens = self.model.encode(inputs["audio"], num_codebooks=settings.get("num_codebooks"))
        with torch.no_grad():
            latent = self.model.latent(inputs["audio"])
            indices, residual = list(tokens.levels), latent
            if start > 0:
                indices = []
                for level in self.levels()[start : settings.get("num_codebooks")]:
                    indices.append(level(residual).indices)
                    residual = residual - level.indices_to_codes(indices[-1])
        return {"indices": torch.stack(indices), "latent": channels_first(latent)}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        indices = inputs["indices"][: settings.get("num_codebooks")]
        start = settings.get("start_codebook", 0)
        with torch.no_grad():
            if start > 0:
                parts = [level.indices_to_codes(own) for level, own in zip(self.levels()[start:], indices[start:])]
                codes = torch.stack(parts).sum(0)
            else:
                codes = self.model.quantizer.indices_to_codes(*indices)
            return {"audio": self.model.reconstruct(codes)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(inputs["audio"])
            feature = self.distillation.projection(self.level_codes(latent, 0))
            return {"audio": self.model.reconstruct(self.model.quantizer(latent).codes), "semantic_feature": feature}

    def features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(inputs["audio"])
            codes = [channels_first(self.level_codes(latent, level)) for level in sorted(settings["levels"])]
        return {"quantized": codes[0] if len(codes) == 1 else torch.stack(codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"]
        latent = self.model.train().latent(audio)
        latent.retain_grad()
        feature = self.distillation.projection(self.level_codes(latent, settings["distill_level"]))
        quantized = self.model.quantizer(latent)
        reconstruction = self.model.reconstruct(quantized.codes)
        losses = {
            "loss.recon": F.l1_loss(reconstruction[..., : audio.shape[-1]], audio),
            "loss.mel": _mel_loss(settings)(reconstruction, audio),
            **self.original_losses(quantized),
            **self.distillation_losses(feature, inputs, settings),
        }
        losses["loss.total"] = losses["loss.mel"] + sum(
            (settings[f"{name}_weight"] * losses[f"loss.{name}"] for name in ("commit", "recon", "distill")),
            torch.zeros(()),
        )
        losses["loss.total"].backward()
        state = self.model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {
            **losses,
            "audio": reconstruction,
            "semantic_feature": feature,
            "grad.latent": channels_first(gradient(latent)),
            **self.gradients(),
            **{
                f"grad.transform.{key}": gradient(weight)
                for key, weight in self.distillation.projection.named_parameters()
            },
            **{f"buffer.{key}": state[own] for key, own in named.items() if own in state},
        }

    def distillation_losses(self, feature: Tensor, inputs: Named, settings: dict[str, Any]) -> Named:
        """Those of one teacher, or of two."""
        semantic = inputs["semantic_feature"]
        loss = along_time if settings["distill_type"] == "d_axis" else along_features
        losses = {"loss.distill": loss(feature, semantic), "loss.distill_t_axis": along_features(feature, semantic)}
        if "language_feature" in inputs:
            both = [loss(feature, semantic), loss(feature, inputs["language_feature"])]
            losses |= {"loss.distill_sm": both[0], "loss.distill_lm": both[1]}
            for name in ("loss.distill", "loss.distill_weighted"):
                if f"combined_weights_of_{name}" in settings:
                    losses[name] = combined(both, settings[f"combined_weights_of_{name}"])
            losses["loss.distill_sm_released"] = _as_released(feature, semantic)
        return losses

    def level_codes(self, latent: Tensor, level: int) -> Tensor:
        """(B, T, D): the codes of one level alone, the gradient of the first passing to the latent."""
        quantizer = self.model.quantizer
        if level == 0:
            return prefix_codes(quantizer, latent, 1)
        upto = (prefix_codes(quantizer, latent, count) for count in (level + 1, level))
        return next(upto) - next(upto)

    def levels(self) -> Any:
        """The quantizers of the levels."""
        return self.model.quantizer.levels


def _mel_loss(settings: dict[str, Any]) -> LogMelLoss:
    resolutions = tuple(
        MelConfig(
            sample_rate=scale["sample_rate"],
            n_fft=scale["n_fft"],
            hop_length=scale["hop_size"],
            n_mels=scale["num_mels"],
            window_length=scale["win_size"],
            low=float(scale["fmin"]),
            high=scale["fmax"],
            area_norm=True,
            padding="hop",
        )
        for scale in settings["mel_loss"]
    )
    return LogMelLoss(LogMelLossConfig(resolutions, tuple(map(float, settings["mel_loss_weights"]))))


def _as_released(student: Tensor, teacher: Tensor) -> Tensor:
    """What the released data path makes of the loss: features with an axis too many, which broadcasts."""
    first = student[None, :, :1]  # (1, B, 1, F) against (B, 1, T, F)
    return -F.logsigmoid(F.cosine_similarity(first, teacher[:, None], dim=1)).mean()
