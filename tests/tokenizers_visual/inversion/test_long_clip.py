"""Long-CLIP: stretched positions keep what they should, names tell a file's sizes, losses are as claimed."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizers_visual.inversion import long_clip
from tokenizers_visual.inversion.words import PseudoWords
from zoo.checkpoint import CheckpointError, read

FOLDER = Path(__file__).parents[2] / "parity" / "long_clip"


def state() -> dict[str, torch.Tensor]:
    return read(FOLDER / "weights.safetensors")


def pair() -> long_clip.OpenClipPair:
    return long_clip.long_clip_pair(
        state(), backbone="long", placeholder_id=259, image_head_width=8, text_head_width=12
    )


@given(length=st.integers(3, 12), keep=st.integers(0, 9), factor=st.integers(1, 5))
def test_stretched_positions_pass_through_the_old_ones(length: int, keep: int, factor: int) -> None:
    keep = min(keep, length - 2)
    old = torch.randn(length, 3)
    new = long_clip.stretch_positions(old, keep=keep, factor=factor)
    assert len(new) == factor * length - (factor - 1) * keep
    assert torch.equal(new[:keep], old[:keep])
    torch.testing.assert_close(new[keep::factor], old[keep:])
    line = torch.arange(length, dtype=torch.float32)[:, None]
    steps = long_clip.stretch_positions(line, keep=keep, factor=factor)[keep:, 0].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / factor))


def test_77_positions_become_248() -> None:
    assert len(long_clip.stretch_positions(torch.randn(77, 2))) == 248
    with pytest.raises(ValueError, match="keep fewer than 76 positions, got 4, 76"):
        long_clip.stretch_positions(torch.randn(77, 2), keep=76)


def test_only_the_rows_in_use_matter() -> None:
    changed = state()
    changed["positional_embedding"][20:] = 0
    changed["positional_embedding_res"][:20] = 0
    ids = torch.zeros(1, 248, dtype=torch.int64)
    ids[0, :100], ids[0, 100] = 5, 299
    other = long_clip.long_clip_pair(
        changed, backbone="long", placeholder_id=259, image_head_width=8, text_head_width=12
    )
    assert torch.equal(other.text_features(ids), pair().text_features(ids))
    changed["positional_embedding_res"][20:] = 0
    other = long_clip.long_clip_pair(
        changed, backbone="long", placeholder_id=259, image_head_width=8, text_head_width=12
    )
    assert not torch.equal(other.text_features(ids), pair().text_features(ids))


def test_words_stand_beyond_77_tokens() -> None:
    ids = torch.zeros(1, 248, dtype=torch.int64)
    ids[0, :200], ids[0, 150], ids[0, 200] = 5, 259, 299
    one, other = (pair().compose(ids, PseudoWords(torch.randn(1, 1, 24), "long")) for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_published_layout_builds_at_full_size() -> None:
    shapes = json.loads((FOLDER / "keys_longclip_vit_b16.json").read_text())
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in shapes.items()}
        built = long_clip.long_clip_pair(published, backbone="long", placeholder_id=259)
    assert built.context_length == 248
    sizes = built.model.visual.image_size, built.model.transformer.resblocks[0].attn.num_heads
    assert sizes == ((224, 224), 8)


def test_the_published_files_are_known() -> None:
    listed = json.loads((FOLDER / "published.json").read_text())
    assert {entry["repo"]: entry["file"] for entry in listed} == long_clip.FILES
    with pytest.raises(ValueError, match="BeichenZhang/LongCLIP-B"):
        long_clip.load_long_clip("openai/clip-vit-base-patch16")


def test_weights_of_a_plain_clip_are_refused() -> None:
    plain = state()
    del plain["positional_embedding_res"]
    with pytest.raises(CheckpointError, match="without positional_embedding_res"):
        long_clip.long_clip_pair(plain, backbone="long")


@given(st.integers(2, 8))
def test_principal_components_are_idempotent_and_all_of_a_small_batch(batch: int) -> None:
    features = torch.randn(batch, 12)
    torch.testing.assert_close(long_clip.principal_components(features, batch), features, rtol=1e-4, atol=1e-5)
    once = long_clip.principal_components(features, 1)
    torch.testing.assert_close(long_clip.principal_components(once, 1), once, rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(once - once.mean(0), atol=1e-4) <= 1


def test_losses_prefer_own_texts() -> None:
    images = torch.eye(5)
    own = long_clip.long_clip_losses(images, images, images, 20.0)
    wrong = long_clip.long_clip_losses(images, images.roll(1, 0), images.roll(1, 0), 20.0)
    assert own["long"] < wrong["long"]
    assert own["short"] < wrong["short"]
    torch.testing.assert_close(own["long"], own["short"])  # five images have no more than 32 components
