"""The random-projection quantizer: labels, codes, and vector-quantize-pytorch's RandomProjectionQuantizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import RandomProjection, RandomProjectionConfig, from_vqp


@settings(max_examples=20)
@given(st.integers(2, 12), st.integers(1, 6), st.booleans(), st.integers(0, 1000))
def test_it_agrees_with_vector_quantize_pytorch(dim: int, codebook_dim: int, norm: bool, seed: int) -> None:
    from vector_quantize_pytorch import RandomProjectionQuantizer

    torch.manual_seed(seed)
    theirs = RandomProjectionQuantizer(dim=dim, codebook_size=30, codebook_dim=codebook_dim, norm=norm)
    ours = from_vqp(theirs)
    z = torch.randn(2, 25, dim)
    assert torch.equal(ours(z).indices, theirs(z))


def test_the_second_projection_of_several_codebooks_has_no_counterpart() -> None:
    from vector_quantize_pytorch import RandomProjectionQuantizer

    with pytest.raises(ValueError, match="num_codebooks"):
        from_vqp(RandomProjectionQuantizer(dim=8, codebook_size=30, codebook_dim=4, num_codebooks=2))


def test_codes_project_to_the_codebook() -> None:
    quantizer = RandomProjectionConfig(dim=12, codebook_size=30, codebook_dim=4, num_codebooks=2).build()
    assert isinstance(quantizer, RandomProjection)
    levels = torch.randint(30, (9,)), torch.randint(30, (9,))
    projected = quantizer.indices_to_codes(*levels) @ quantizer.projections
    torch.testing.assert_close(projected, torch.stack([c[i] for c, i in zip(quantizer.codebooks, levels)]))


def test_labels_do_not_depend_on_scale_and_offset_of_the_latent() -> None:
    quantizer = RandomProjectionConfig(dim=12, codebook_size=30, codebook_dim=4).build()
    z = torch.randn(50, 12)
    assert torch.equal(quantizer(z).indices, quantizer(5 * z + 3).indices)
    plain = RandomProjectionConfig(dim=12, codebook_size=30, codebook_dim=4, normalise=False).build()
    expected = F.normalize(z @ plain.projections[0], dim=-1) @ plain.codebooks[0].T  # type: ignore[index]
    assert torch.equal(plain(z).indices, expected.argmax(dim=1))


def test_nothing_is_trained_and_all_is_saved() -> None:
    config = RandomProjectionConfig(dim=12, codebook_size=30, codebook_dim=4)
    first, second = config.build(), config.build()
    assert list(first.parameters()) == []
    second.load_state_dict(first.state_dict())
    z = torch.randn(50, 12)
    assert torch.equal(first(z).indices, second(z).indices)


def test_configs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_codebooks >= 1"):
        RandomProjectionConfig(num_codebooks=0)
