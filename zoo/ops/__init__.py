"""Fast kernels behind the quantizers. Each states its plain definition; the tests compare with it."""

from zoo.ops.binary_entropy import binary_entropy, mean_assignment
from zoo.ops.nearest_code import METRICS, Metric, nearest_code
from zoo.ops.soft_entropy import soft_entropy

__all__ = ["METRICS", "Metric", "binary_entropy", "mean_assignment", "nearest_code", "soft_entropy"]
