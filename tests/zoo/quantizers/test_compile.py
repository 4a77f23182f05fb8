"""`torch.compile` takes quantisation and look-up in evaluation as one graph each."""

import pytest
import torch

from zoo.quantizers import (
    AffineConfig,
    GumbelConfig,
    IndexBackpropagationConfig,
    MemoryConfig,
    ProjectedConfig,
    QuantizerConfig,
    RotationConfig,
    SimVQConfig,
    VectorConfig,
    VQBridgeConfig,
)

CONFIGS: dict[str, QuantizerConfig] = {
    "vector": VectorConfig(37, 6),
    "vector_cosine": VectorConfig(37, 6, "cosine", gradient=RotationConfig()),
    "vector_affine": VectorConfig(37, 6, affine=AffineConfig()),
    "sim_vq": SimVQConfig(37, 6),
    "vq_bridge": VQBridgeConfig(36, 6, run=4, width=8, heads=2),
    "index_backpropagation": IndexBackpropagationConfig(37, 6),
    "gumbel": GumbelConfig(37, 6),
    "memory": MemoryConfig(37, 6),
    "projected": ProjectedConfig(9, VectorConfig(37, 6)),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_evaluation_is_one_graph(config: QuantizerConfig) -> None:
    torch.compiler.reset()  # torch compiles a function for eight kinds of module at most
    quantizer, z = config.build().eval(), torch.randn(2, 5, config.dim)
    with torch.no_grad():
        expected = quantizer(z)
        got = torch.compile(quantizer, backend="eager", fullgraph=True)(z)
        codes = torch.compile(quantizer.indices_to_codes, backend="eager", fullgraph=True)(*got.levels)
    assert all(torch.equal(a, b) for a, b in zip(got.levels, expected.levels))
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(codes, expected.codes)
