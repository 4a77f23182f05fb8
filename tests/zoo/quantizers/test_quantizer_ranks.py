"""Two processes, each with half a batch, train a quantizer as one process with the whole batch does.

The processes are real ones (gloo), started once for all configs. A quantizer joins by a line in `CONFIGS`; what draws a
noise for each latent cannot, since processes draw their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from ranks import run_ranks
from torch import Tensor

from zoo.quantizers import (
    AffineConfig,
    CrossEntropyConfig,
    EmaCodebookConfig,
    FrozenCodebookConfig,
    GradientCodebookConfig,
    GroupedConfig,
    ImplicitNeuralConfig,
    IndexBackpropagationConfig,
    InPlaceCodebookConfig,
    LevelDropoutConfig,
    MultiScaleConfig,
    OrthogonalityConfig,
    ProjectedConfig,
    QuantizerConfig,
    ResidualConfig,
    RotationConfig,
    SimVQConfig,
    SoftEntropyConfig,
    VectorConfig,
    VQBridgeConfig,
)

KMEANS = EmaCodebookConfig(decay=0.8, revive_below=1.5, start="kmeans")
CONFIGS: dict[str, QuantizerConfig] = {
    "vector": VectorConfig(12, 4),
    "vector_entropy": VectorConfig(12, 4, "cosine", entropy=SoftEntropyConfig(temperature=0.3)),
    "vector_kmeans": VectorConfig(12, 4, codebook=GradientCodebookConfig(0.8, decay=0.7, start="kmeans")),
    "vector_ema": VectorConfig(12, 4, codebook=EmaCodebookConfig(decay=0.8)),
    "vector_ema_kmeans": VectorConfig(12, 4, codebook=KMEANS, gradient=RotationConfig()),
    "vector_ema_cosine": VectorConfig(12, 4, "cosine", codebook=KMEANS, entropy=SoftEntropyConfig(temperature=0.3)),
    "vector_ema_affine": VectorConfig(12, 4, codebook=EmaCodebookConfig(revive_below=1.0), affine=AffineConfig()),
    "vector_in_place": VectorConfig(12, 4, codebook=InPlaceCodebookConfig(2.0, momentum=0.5)),
    "vector_frozen": VectorConfig(12, 4, codebook=FrozenCodebookConfig(start="kmeans")),
    "vector_losses": VectorConfig(
        12, 4, cross_entropy=CrossEntropyConfig(), orthogonality=OrthogonalityConfig("active", maximum=3)
    ),
    "sim_vq": SimVQConfig(12, 4),
    "vq_bridge": VQBridgeConfig(12, 4, run=3, width=8, heads=2),
    "index_backpropagation": IndexBackpropagationConfig(12, 4, SoftEntropyConfig(temperature=0.3)),
    "projected": ProjectedConfig(6, VectorConfig(12, 4, codebook=KMEANS)),
    "residual": ResidualConfig(VectorConfig(12, 4, codebook=KMEANS), num_levels=2),
    "residual_shared": ResidualConfig(VectorConfig(12, 4, codebook=EmaCodebookConfig(0.8)), num_levels=2, shared=True),
    "residual_dropout": ResidualConfig(
        VectorConfig(12, 4, codebook=EmaCodebookConfig(0.8)), num_levels=3, dropout=LevelDropoutConfig()
    ),
    "grouped_shared": GroupedConfig(VectorConfig(12, 4, codebook=KMEANS), num_groups=2, shared=True),
    "multi_scale": MultiScaleConfig(
        VectorConfig(12, 4, codebook=EmaCodebookConfig(0.8)), ladder=(1, 3), num_convolutions=1
    ),
    "implicit_neural": ImplicitNeuralConfig(12, 4, num_levels=2, blocks=1, hidden=6),
}
# whose codes are moved by statistics alone: one process may then have all latents and the other none
MOVED_BY_STATISTICS = ["vector_ema", "vector_ema_kmeans", "vector_ema_affine", "vector_in_place", "vector_frozen"]
PROCESSES, STEPS, ITEMS = 2, 4, 40


def train(config: QuantizerConfig, rank: int, processes: int, share: list[int]) -> dict[str, Any]:
    """A few steps on this process's share of each batch: `share[rank]` of its items, after those of lower ranks."""
    torch.manual_seed(1)
    quantizer = config.build().train()
    start = sum(share[:rank])
    record: dict[str, Any] = {"indices": [], "slopes": [], "losses": []}
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        grid = (3, 1) if config.scales else (3,)
        z, upstream = torch.randn(2, sum(share), *grid, config.dim, generator=generator)
        torch.manual_seed(100 + step + 1000 * rank)  # draws that concern all are those of the first process
        x = (z + 0.2 * step)[start : start + share[rank]].requires_grad_()
        quantizer.zero_grad()
        quantized = quantizer(x)
        losses = {"task": (quantized.codes * upstream[start : start + share[rank]]).sum() / max(1, x.numel())}
        losses |= quantized.losses
        sum(losses.values(), torch.zeros(())).backward()
        record["indices"].append(quantized.levels)
        record["slopes"].append(x.grad / processes)  # of the mean of the processes' losses
        record["losses"].append({name: mean(loss.detach(), processes) for name, loss in losses.items()})
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if parameter.grad is not None:
                    parameter -= 0.3 * mean(parameter.grad, processes)
    record["state"] = quantizer.state_dict()
    return record


def mean(tensor: Tensor, processes: int) -> Tensor:
    tensor = tensor.clone()
    if processes > 1:
        torch.distributed.all_reduce(tensor)
    return tensor / processes


def run_process(rank: int, folder: str) -> None:
    half = {name: train(config, rank, PROCESSES, [ITEMS // 2, ITEMS // 2]) for name, config in CONFIGS.items()}
    none = {name: train(CONFIGS[name], rank, PROCESSES, [0, ITEMS]) for name in MOVED_BY_STATISTICS}
    torch.save({"half": half, "none": none}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each process recorded, by kind of share and name of config."""
    folder: Path = tmp_path_factory.mktemp("processes")
    run_ranks(run_process, str(folder), count=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_codebooks_are_the_same_in_all_processes(records: list, name: str) -> None:
    first, *others = (record["half"][name]["state"] for record in records)
    for other in others:
        assert_same(first, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_as_one_with_the_joined_batch(records: list, name: str) -> None:
    single = train(CONFIGS[name], 0, 1, [ITEMS])
    for step in range(STEPS):
        parts = [record["half"][name] for record in records]
        for level, indices in enumerate(single["indices"][step]):
            assert torch.equal(torch.cat([part["indices"][step][level] for part in parts]), indices)
        slopes = torch.cat([part["slopes"][step] for part in parts])
        torch.testing.assert_close(slopes, single["slopes"][step], rtol=1e-4, atol=1e-6)
        for part in parts:
            assert_same(part["losses"][step], single["losses"][step], rtol=1e-4, atol=1e-5)
    assert_same(records[0]["half"][name]["state"], single["state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MOVED_BY_STATISTICS)
def test_a_process_without_latents_takes_part(records: list, name: str) -> None:
    single = train(CONFIGS[name], 0, 1, [ITEMS])
    for record in records:
        assert_same(record["none"][name]["state"], single["state"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_codes_move(name: str) -> None:
    """Else the tests above would compare nothing."""
    torch.manual_seed(1)
    before, after = CONFIGS[name].build().state_dict(), train(CONFIGS[name], 0, 1, [ITEMS])["state"]
    assert any(not torch.equal(before[key], after[key]) for key in before)
