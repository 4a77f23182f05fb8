"""Losses for training tokenizers: reconstruction, perceptual, adversarial, and their composition in VQGAN."""

from zoo.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, LeCam, adaptive_weight, r1_penalty
from zoo.losses.dino_discriminator import DinoDiscriminator, DinoDiscriminatorConfig
from zoo.losses.discriminators import (
    BlurDiscriminator,
    BlurDiscriminatorConfig,
    DiscriminatorConfig,
    PatchGAN,
    PatchGANConfig,
)
from zoo.losses.perceptual import FeatureDistance, LogitDistance, lite_distance, lpips, perceptual_distance
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.losses.style_discriminator import StyleDiscriminator, StyleDiscriminatorConfig
from zoo.losses.vqgan import AdversaryConfig, LossTerms, VQGANLoss, VQGANLossConfig

__all__ = [
    "DISCRIMINATOR_LOSSES",
    "GENERATOR_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "AdversaryConfig",
    "BlurDiscriminator",
    "BlurDiscriminatorConfig",
    "DinoDiscriminator",
    "DinoDiscriminatorConfig",
    "DiscriminatorConfig",
    "FeatureDistance",
    "LeCam",
    "LogitDistance",
    "LossTerms",
    "PatchGAN",
    "PatchGANConfig",
    "StyleDiscriminator",
    "StyleDiscriminatorConfig",
    "VQGANLoss",
    "VQGANLossConfig",
    "adaptive_weight",
    "lite_distance",
    "lpips",
    "perceptual_distance",
    "r1_penalty",
]
