"""Quantizers: one file each, one interface, every one usable in every architecture."""

from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, bits_per_code
from zoo.quantizers.bernoulli import Bernoulli, BernoulliConfig
from zoo.quantizers.binary import Binary, BinaryConfig, BinaryEntropyConfig
from zoo.quantizers.binary_mapper import BinaryMapper, BinaryMapperConfig
from zoo.quantizers.codebooks import (
    AffineConfig,
    CodebookConfig,
    DirectionCodebookConfig,
    EmaCodebookConfig,
    FrozenCodebookConfig,
    GradientCodebookConfig,
    InPlaceCodebookConfig,
)
from zoo.quantizers.dimension_wise import DimensionWise, DimensionWiseConfig
from zoo.quantizers.finite_discrete import FiniteDiscrete, FiniteDiscreteConfig
from zoo.quantizers.finite_scalar import FiniteScalar, FiniteScalarConfig, NoiseDropoutConfig
from zoo.quantizers.finite_scalar_perturbation import (
    FiniteScalarPerturbation,
    FiniteScalarPerturbationConfig,
    MomentsConfig,
)
from zoo.quantizers.from_vqp import from_vqp
from zoo.quantizers.gradients import DiVeQConfig, GradientConfig, RotationConfig, StraightThroughConfig
from zoo.quantizers.grouped import Grouped, GroupedConfig
from zoo.quantizers.gumbel import Gumbel, GumbelConfig
from zoo.quantizers.implicit_neural import ImplicitNeural, ImplicitNeuralConfig
from zoo.quantizers.index_backprop import IndexBackpropagation, IndexBackpropagationConfig
from zoo.quantizers.latent import Latent, LatentConfig
from zoo.quantizers.level_dropout import LevelDropoutConfig
from zoo.quantizers.memory import Memory, MemoryConfig
from zoo.quantizers.multi_scale import MultiScale, MultiScaleConfig
from zoo.quantizers.projected import Projected, ProjectedConfig
from zoo.quantizers.random_projection import RandomProjection, RandomProjectionConfig
from zoo.quantizers.regularisers import CrossEntropyConfig, OrthogonalityConfig, SoftEntropyConfig
from zoo.quantizers.residual import Residual, ResidualConfig
from zoo.quantizers.rotated import Rotated, RotatedConfig
from zoo.quantizers.sim_vq import SimVQ, SimVQConfig
from zoo.quantizers.spherical_binary import SphericalBinary, SphericalBinaryConfig
from zoo.quantizers.strided import Strided, StridedConfig
from zoo.quantizers.summed import Summed, SummedConfig
from zoo.quantizers.vector import SamplingConfig, Vector, VectorConfig
from zoo.quantizers.vq_bridge import VQBridge, VQBridgeConfig

# short names that `create_model(..., quantizer=...)` takes
QUANTIZERS: dict[str, type[QuantizerConfig]] = {
    "vector": VectorConfig,
    "vq": VectorConfig,
    "finite_scalar": FiniteScalarConfig,
    "fsq": FiniteScalarConfig,
    "binary": BinaryConfig,
    "lfq": BinaryConfig,
    "spherical_binary": SphericalBinaryConfig,
    "bsq": SphericalBinaryConfig,
    "bernoulli": BernoulliConfig,
    "binary_mapper": BinaryMapperConfig,
    "finite_scalar_perturbation": FiniteScalarPerturbationConfig,
    "fsp": FiniteScalarPerturbationConfig,
    "latent": LatentConfig,
    "random_projection": RandomProjectionConfig,
    "dimension_wise": DimensionWiseConfig,
    "residual": ResidualConfig,
    "rvq": ResidualConfig,
    "grouped": GroupedConfig,
    "multi_scale": MultiScaleConfig,
    "summed": SummedConfig,
    "implicit_neural": ImplicitNeuralConfig,
    "qinco": ImplicitNeuralConfig,
    "sim_vq": SimVQConfig,
    "vq_bridge": VQBridgeConfig,
    "index_backpropagation": IndexBackpropagationConfig,
    "gumbel": GumbelConfig,
    "memory": MemoryConfig,
    "finite_discrete": FiniteDiscreteConfig,
    "projected": ProjectedConfig,
    "rotated": RotatedConfig,
}

__all__ = [
    "QUANTIZERS",
    "AffineConfig",
    "Bernoulli",
    "BernoulliConfig",
    "Binary",
    "BinaryConfig",
    "BinaryEntropyConfig",
    "BinaryMapper",
    "BinaryMapperConfig",
    "CodebookConfig",
    "CrossEntropyConfig",
    "DiVeQConfig",
    "DimensionWise",
    "DimensionWiseConfig",
    "DirectionCodebookConfig",
    "EmaCodebookConfig",
    "FiniteDiscrete",
    "FiniteDiscreteConfig",
    "FiniteScalar",
    "FiniteScalarConfig",
    "FiniteScalarPerturbation",
    "FiniteScalarPerturbationConfig",
    "FrozenCodebookConfig",
    "GradientCodebookConfig",
    "GradientConfig",
    "Grouped",
    "GroupedConfig",
    "Gumbel",
    "GumbelConfig",
    "ImplicitNeural",
    "ImplicitNeuralConfig",
    "InPlaceCodebookConfig",
    "IndexBackpropagation",
    "IndexBackpropagationConfig",
    "Latent",
    "LatentConfig",
    "LevelDropoutConfig",
    "Memory",
    "MemoryConfig",
    "MomentsConfig",
    "MultiScale",
    "MultiScaleConfig",
    "NoiseDropoutConfig",
    "OrthogonalityConfig",
    "Projected",
    "ProjectedConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "RandomProjection",
    "RandomProjectionConfig",
    "Residual",
    "ResidualConfig",
    "Rotated",
    "RotatedConfig",
    "RotationConfig",
    "SamplingConfig",
    "SimVQ",
    "SimVQConfig",
    "SoftEntropyConfig",
    "SphericalBinary",
    "SphericalBinaryConfig",
    "StraightThroughConfig",
    "Strided",
    "StridedConfig",
    "Summed",
    "SummedConfig",
    "VQBridge",
    "VQBridgeConfig",
    "Vector",
    "VectorConfig",
    "bits_per_code",
    "from_vqp",
]
