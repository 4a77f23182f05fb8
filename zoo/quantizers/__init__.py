"""Quantizers: one file each, one interface, every one usable in every architecture."""

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, bits_per_code
from zoo.quantizers.binary import Binary, BinaryConfig, BinaryEntropyConfig
from zoo.quantizers.finite_scalar import FiniteScalar, FiniteScalarConfig
from zoo.quantizers.vector import (
    EmaCodebookConfig,
    GradientCodebookConfig,
    SoftEntropyConfig,
    Vector,
    VectorConfig,
)

# short names that `create_model(..., quantizer=...)` takes
QUANTIZERS: dict[str, type[QuantizerConfig]] = {
    "vector": VectorConfig,
    "vq": VectorConfig,
    "finite_scalar": FiniteScalarConfig,
    "fsq": FiniteScalarConfig,
    "binary": BinaryConfig,
    "lfq": BinaryConfig,
}

__all__ = [
    "QUANTIZERS",
    "Binary",
    "BinaryConfig",
    "BinaryEntropyConfig",
    "EmaCodebookConfig",
    "FiniteScalar",
    "FiniteScalarConfig",
    "GradientCodebookConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "SoftEntropyConfig",
    "Vector",
    "VectorConfig",
    "bits_per_code",
]
