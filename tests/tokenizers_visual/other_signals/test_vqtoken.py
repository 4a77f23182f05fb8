"""VQToken: clusters of a clip, how many it needs, and the attention over them."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tokenizers_visual.other_signals.vqtoken import (
    ClipTokens,
    VQToken,
    VQTokenConfig,
    cluster,
    config_from_original,
    elbow,
    spread,
)
from zoo.config import ConfigError

CONFIG = VQTokenConfig(tokens=9, width=8, heads=2, feedforward=16, clusters=4)


@pytest.fixture(scope="module")
def model() -> VQToken:
    torch.manual_seed(0)
    return VQToken(CONFIG).eval()


def bundles(count: int, frames: int = 4, noise: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (frames, 9, 8) around `count` directions at right angles, and which of them each is near."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(count, (frames, 9), generator=generator)
    which.view(-1)[:count] = torch.arange(count)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    x = directions[which] * (1 + torch.rand(frames, 9, 1, generator=generator))
    return x + noise * torch.randn(x.shape, generator=generator), which


def test_clusters_are_the_directions_that_are_there(model: VQToken) -> None:
    features, which = bundles(4)
    clip = model.encode(features)
    assert len(set(zip(clip.indices.flatten().tolist(), which.flatten().tolist()))) == 4
    cosines = F.cosine_similarity(features, clip.codes[clip.indices], dim=-1)
    assert float(cosines.min()) > 0.9


def test_the_same_clip_gives_the_same_tokens_and_magnitudes_do_not_matter(model: VQToken) -> None:
    features, _ = bundles(4)
    clip, again, longer = (model.encode(x) for x in (features, features, features * 7))
    assert torch.equal(clip.indices, again.indices)
    assert torch.equal(clip.codes, again.codes)
    assert torch.equal(clip.indices, longer.indices)


@given(st.integers(0, 99), st.integers(1, 6))
def test_clustering_never_raises_the_distance_and_keeps_centres_that_lose_all(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    start = torch.cat([spread(x, count, seed), -1000 * x.mean(0, keepdim=True)])
    indices, centres = cluster(x, start, 50, 1e-4)
    assert int(indices.max()) <= count
    if not bool((indices == count).any()):
        assert torch.equal(centres[count], start[count])

    def distance(centres: Tensor) -> float:
        return float((1 - F.normalize(x, dim=-1) @ F.normalize(centres, dim=-1).T).min(1).values.mean())

    assert distance(centres) <= distance(start) + 1e-6


def test_the_elbow_is_at_the_number_of_directions(model: VQToken) -> None:
    features, _ = bundles(5, frames=8)
    assert elbow(model, features, least=2, most=8) == 5
    with pytest.raises(ValueError, match="expected at least three numbers of clusters, got 2 to 3"):
        elbow(model, features, least=2, most=3)


@pytest.mark.parametrize(("frames", "clusters"), [(2, 4), (6, 4), (4, 4)])
def test_attention_gives_as_many_vectors_as_the_longer_of_frames_and_clusters(
    model: VQToken, frames: int, clusters: int
) -> None:
    clip = model.encode(bundles(4, frames)[0], num_tokens=clusters)
    with torch.no_grad():
        output = model(clip)
    assert output.shape == (max(frames, clusters), 8)
    assert clip.codes.shape == (clusters, 8)


def test_attention_learns(model: VQToken) -> None:
    clip = model.encode(bundles(4)[0])
    codes = clip.codes.requires_grad_()
    model(ClipTokens(clip.indices, codes)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert codes.grad is not None
    model.zero_grad()


def test_a_saved_model_is_the_same_and_its_config_survives_json(model: VQToken, tmp_path: Path) -> None:
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert again.source == model.source
    assert VQTokenConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(ConfigError, match="3 heads divide"):
        CONFIG.replace(heads=3)
    assert zoo.create_model("vqtoken", clusters=5).config.clusters == 5


def test_what_is_no_clip_is_refused(model: VQToken) -> None:
    features, _ = bundles(4)
    spoilt = features.clone()
    spoilt[0, 0, 0] = float("nan")
    for wrong, message in (
        (features[0], r"expected floating point features \(frames, 9, 8\), got \(9, 8\)"),
        (features[:, :3], r"got \(4, 3, 8\)"),
        (features[:0], r"got \(0, 9, 8\)"),
        (features.long(), r"got torch\.int64"),
        (None, "got NoneType"),
        (spoilt, "expected finite features"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_tokens: expected 1 to 36, got 37"):
        model.encode(features, num_tokens=37)
    with pytest.raises(ValueError, match=r"start: expected \(4, 8\), got \(3, 8\)"):
        model.encode(features, start=torch.zeros(3, 8))


def test_originals_with_arguments_left_out_and_of_several_layers() -> None:
    stated = {"query_dim": 9, "context_dim": 8, "num_clusters": 4}
    expected = VQTokenConfig(tokens=9, width=8, heads=1, clusters=4, iterations=300)
    assert config_from_original({"original": {"kwargs": stated}}) == expected
    with pytest.raises(ValueError, match="one layer of attention, got 2"):
        config_from_original({"original": {"kwargs": {**stated, "num_layers": 2}}})
