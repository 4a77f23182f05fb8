"""The grouped quantizer: its definition, its order of levels, and shared codebooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import (
    BinaryConfig,
    EmaCodebookConfig,
    FiniteScalarConfig,
    Grouped,
    GroupedConfig,
    LevelDropoutConfig,
    MultiScaleConfig,
    ProjectedConfig,
    QuantizerConfig,
    ResidualConfig,
    SoftEntropyConfig,
    VectorConfig,
)


def built(config: GroupedConfig, seed: int = 0) -> Grouped:
    torch.manual_seed(seed)
    quantizer = config.build()
    assert isinstance(quantizer, Grouped)
    for parameter in quantizer.parameters():
        parameter.data.normal_()
    return quantizer


def latents(config: QuantizerConfig, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, config.dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True])
@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    metric=st.sampled_from(["euclidean", "cosine"]),
    entropy=st.booleans(),
)
def test_each_group_is_quantized_by_itself(training: bool, widths: list[int], metric: Any, entropy: bool) -> None:
    term = SoftEntropyConfig(temperature=0.5) if entropy else None
    config = GroupedConfig(tuple(VectorConfig(7, width, metric, entropy=term) for width in widths), len(widths))
    assert config.dim == sum(widths)
    assert config.vocab_sizes == (7,) * len(widths)
    quantizer = built(config).train(training)
    z = latents(config, 2, 3)
    quantized = quantizer(z)
    alone = [group(chunk) for group, chunk in zip(quantizer.groups, z.split(widths, -1))]
    assert torch.equal(quantized.codes, torch.cat([part.codes for part in alone], -1))
    assert [level.tolist() for level in quantized.levels] == [part.indices.tolist() for part in alone]
    assert quantized.losses.keys() == alone[0].losses.keys()
    for name, loss in quantized.losses.items():
        torch.testing.assert_close(loss, torch.stack([part.losses[name] for part in alone]).mean())
    if training and entropy:
        entropies = [part.statistics["sample_entropy"] for part in alone]
        torch.testing.assert_close(quantized.statistics["sample_entropy"], torch.stack(entropies).mean())


def test_multi_codebook_quantisation_is_groups_of_cosine_codebooks() -> None:
    """UniTok's: chunks on the unit sphere, the largest cosine, the mean of the losses over codebooks."""
    config = GroupedConfig(VectorConfig(codebook_size=12, dim=4, metric="cosine"), num_groups=3)
    quantizer = built(config)
    z = latents(config, 2, 6).requires_grad_()
    quantized = quantizer(z)
    chunks = [F.normalize(chunk, dim=-1) for chunk in z.split(4, -1)]
    codes = [F.normalize(group.codebook.weight, dim=-1) for group in quantizer.groups]  # type: ignore[union-attr, arg-type]
    for level, chunk, codebook in zip(quantized.levels, chunks, codes):
        assert torch.equal(level, (chunk @ codebook.T).argmax(-1))
    expected = torch.cat([codebook[level] for codebook, level in zip(codes, quantized.levels)], -1)
    torch.testing.assert_close(quantized.codes, expected)
    distances = F.mse_loss(torch.cat(chunks, -1), expected)
    torch.testing.assert_close(quantized.losses["commitment"], distances)
    quantized.losses["codebook"].backward()
    assert all(bool(group.codebook.weight.grad.any()) for group in quantizer.groups)  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [False, True])
def test_a_shared_codebook_sees_all_groups_as_one_batch(training: bool) -> None:
    level = VectorConfig(7, 4, codebook=EmaCodebookConfig(decay=0.8))
    config = GroupedConfig(level, num_groups=3, shared=True)
    quantizer, single = config.build().train(training), level.build().train(training)
    assert isinstance(quantizer, Grouped)
    single.load_state_dict(quantizer.groups[0].state_dict())
    z = latents(config, 2, 5)
    quantized, joined = quantizer(z), single(z.view(2, 5, 3, 4))
    assert torch.equal(quantized.indices, joined.indices)
    assert torch.equal(quantized.codes, joined.codes.flatten(-2))
    assert torch.equal(quantized.losses["commitment"], joined.losses["commitment"])
    for key, value in single.state_dict().items():
        assert torch.equal(quantizer.groups[0].state_dict()[key], value)


@pytest.mark.parametrize("shared", [False, True])
def test_levels_of_all_groups_come_before_the_next_level(shared: bool) -> None:
    config = GroupedConfig(ResidualConfig(VectorConfig(7, 2), num_levels=3), num_groups=2, shared=shared)
    assert config.prefix
    quantizer = built(config).eval()
    z = latents(config, 4, 5)
    levels = quantizer(z).levels
    parts = [quantizer.groups[0 if shared else g](z[..., 2 * g : 2 * g + 2]) for g in range(2)]
    for k in range(1, 7):
        assert torch.equal(levels[k - 1], parts[(k - 1) % 2].levels[(k - 1) // 2])
        of_groups = [part.levels[: (k + 1 - g) // 2] for g, part in enumerate(parts)]
        expected = torch.cat(
            [
                quantizer.groups[0 if shared else g].indices_to_codes(*own) if own else torch.zeros(4, 5, 2)  # type: ignore[operator]
                for g, own in enumerate(of_groups)
            ],
            -1,
        )
        assert torch.equal(quantizer.indices_to_codes(*levels[:k]), expected)


def test_different_groups() -> None:
    config = GroupedConfig((VectorConfig(9, 4), FiniteScalarConfig(levels=(5, 3)), BinaryConfig(bits=3)), num_groups=3)
    assert config.dim == 9
    assert config.vocab_sizes == (9, 15, 8)
    assert not config.prefix
    quantizer = built(config).eval()
    quantized = quantizer(latents(config, 5))
    assert torch.equal(quantizer.indices_to_codes(*quantized.levels), quantized.codes)
    partly = torch.cat([quantized.codes[:, :6], torch.zeros(5, 3)], -1)
    assert torch.equal(quantizer.indices_to_codes(*quantized.levels[:2]), partly)
    for levels in ((), (*quantized.levels, quantized.levels[0])):
        with pytest.raises(ValueError, match="expected 1 to 3 levels, got"):
            quantizer.indices_to_codes(*levels)


def test_groups_of_scales_keep_their_positions() -> None:
    config = GroupedConfig(MultiScaleConfig(VectorConfig(5, 2), ladder=(1, 2), num_convolutions=1), num_groups=2)
    assert config.scales
    assert config.prefix
    assert config.level_shapes((2, 2)) == ((1, 1), (1, 1), (2, 2), (2, 2))
    quantizer = built(config).eval()
    quantized = quantizer(latents(config, 3, 2, 2))
    assert torch.equal(quantizer.indices_to_codes(*quantized.levels), quantized.codes)
    wide = quantizer(latents(config, 3, 4, 6))
    assert torch.equal(quantizer.prefix_to_codes((4, 6), *wide.levels), wide.codes)
    assert quantizer.prefix_to_codes((4, 6), *wide.levels[:1]).shape == (3, 4, 6, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_groups": 0}, "num_groups >= 1, got 0"),
        ({"group": (VectorConfig(9, 4),), "num_groups": 2}, "one for each of the 2 groups, got 1"),
        ({"group": (VectorConfig(9, 4),) * 2, "num_groups": 2, "shared": True}, "one group config when"),
        (
            {"group": (ResidualConfig(num_levels=2), ResidualConfig(num_levels=3)), "num_groups": 2},
            r"groups of equally many levels, got \[2, 3\]",
        ),
        ({"group": ProjectedConfig(4, ResidualConfig(dropout=LevelDropoutConfig()))}, "groups without dropout"),
        ({"group": MultiScaleConfig(), "shared": True}, "the same positions when shared"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GroupedConfig(**fields)


def test_configs_survive_plain_values() -> None:
    config = GroupedConfig((VectorConfig(9, 4), BinaryConfig(bits=4)), 2)
    assert GroupedConfig.from_dict(config.to_dict()) == config
    assert GroupedConfig().replace(num_groups=2).vocab_sizes == (4096, 4096)


def test_dropout_of_scales_is_shared_by_the_groups() -> None:
    scales = MultiScaleConfig(
        VectorConfig(9, 2), ladder=(1, 2, 4), num_convolutions=1, dropout=LevelDropoutConfig(per_item=True)
    )
    quantizer = built(GroupedConfig(scales, num_groups=2)).train()
    z = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    quantized = quantizer(z)
    counts = []
    for i in range(8):
        for count in (1, 2, 3):
            levels = [level[i : i + 1] for level in quantized.levels[: 2 * count]]
            if torch.allclose(quantizer.prefix_to_codes((4, 4), *levels), quantized.codes[i : i + 1], atol=1e-5):
                counts.append(count)
    assert len(counts) == 8  # each item is cut after the same scale in both groups
    assert len(set(counts)) > 1
