"""Fast kernels behind the quantizers. Each states its plain definition; the tests compare with it."""

from zoo.ops.binary_entropy import binary_entropy, mean_assignment
from zoo.ops.code_sums import code_sums
from zoo.ops.kmeans import kmeans
from zoo.ops.nearest_code import METRICS, Metric, nearest_code
from zoo.ops.nearest_codes import nearest_codes
from zoo.ops.residual_codes import residual_codes
from zoo.ops.soft_assignment import sample_codes, soft_cross_entropy
from zoo.ops.soft_entropy import soft_entropy
from zoo.ops.sparsemax import sparsemax

__all__ = [
    "METRICS",
    "Metric",
    "binary_entropy",
    "code_sums",
    "kmeans",
    "mean_assignment",
    "nearest_code",
    "nearest_codes",
    "residual_codes",
    "sample_codes",
    "soft_cross_entropy",
    "soft_entropy",
    "sparsemax",
]
