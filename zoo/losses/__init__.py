"""Losses for training tokenizers: reconstruction, perceptual, adversarial, and their composition in VQGAN."""

from zoo.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, LeCam, adaptive_weight
from zoo.losses.discriminators import BlurDiscriminator, BlurDiscriminatorConfig, PatchGAN, PatchGANConfig
from zoo.losses.perceptual import FeatureDistance, LogitDistance, lite_distance, lpips
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.losses.vqgan import LossTerms, VQGANLoss, VQGANLossConfig

__all__ = [
    "DISCRIMINATOR_LOSSES",
    "GENERATOR_LOSSES",
    "RECONSTRUCTION_LOSSES",
    "BlurDiscriminator",
    "BlurDiscriminatorConfig",
    "FeatureDistance",
    "LeCam",
    "LogitDistance",
    "LossTerms",
    "PatchGAN",
    "PatchGANConfig",
    "VQGANLoss",
    "VQGANLossConfig",
    "adaptive_weight",
    "lite_distance",
    "lpips",
]
