"""ElasticTok: blocks that see what came before them, and as many tokens as a block needs."""

import pytest
import torch
from torch import Tensor

from tokenizers_visual.elastictok import ElasticTok, ElasticTokConfig
from zoo.config import ConfigError
from zoo.quantizers import FiniteScalarConfig
from zoo.tokens import Tokens

CONFIG = ElasticTokConfig(
    resolution=8, blocks=3, block_frames=2, patch_size=4, least_tokens=2, width=16, hidden=24, layers=1, heads=2,
    quantizer=FiniteScalarConfig(levels=(8, 5, 5)),
)  # fmt: skip
MOST = 2 * 4  # tokens of a block: two frames of 2 x 2 patches


def build(seed: int = 0) -> ElasticTok:
    torch.manual_seed(seed)
    model = ElasticTok(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def videos(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 6, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def flat_and_busy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Videos whose blocks are of one colour, or have one for each patch; and which of both (B, blocks)."""
    generator = torch.Generator().manual_seed(seed)
    busy = torch.rand(count, 3, generator=generator) < 0.5
    colours = torch.rand(count, 1, 3, 2, 2, 2, generator=generator) * 1.6 - 0.8  # B, C, block, frame, row, column
    same = colours[..., :1, :1, :1].expand_as(colours)
    chosen = torch.where(busy[:, None, :, None, None, None], colours, same).expand(-1, 3, -1, -1, -1, -1)
    return chosen.flatten(2, 3).repeat_interleave(4, 3).repeat_interleave(4, 4), busy


def test_half_precision_takes_videos_as_they_are() -> None:
    model = build().bfloat16()
    assert model.encode(videos()) == model.encode(videos().bfloat16())


@pytest.fixture(scope="module")
def trained() -> ElasticTok:
    torch.manual_seed(0)
    model = ElasticTok(CONFIG.replace(width=32, hidden=64)).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(250):
        x = flat_and_busy(12, step)[0]
        (model(x).reconstruction - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_patches_are_put_back_where_they_were() -> None:
    model, x = build(), videos()
    patches = model._patchify(x)
    assert patches.shape == (2, 3 * MOST, 3 * 16)
    assert torch.equal(model._unpatchify(patches), x)
    assert torch.equal(patches[0, MOST + 1].view(1, 4, 4, 3), x[0, :, 2:3, :4, 4:].permute(1, 2, 3, 0))


@pytest.mark.parametrize("frames", [2, 4])
def test_a_block_sees_itself_and_earlier_blocks_alone(frames: int) -> None:
    model, x, other = build(), videos(seed=1), videos(seed=2)
    joined = torch.cat([x[:, :, :frames], other[:, :, frames:]], dim=2)
    known = frames // 2 * MOST
    with torch.no_grad():
        torch.testing.assert_close(model.latent(joined)[:, :known], model.latent(x)[:, :known])
        assert not torch.allclose(model.latent(joined)[:, known:], model.latent(x)[:, known:])
        codes, others = torch.randn(1, 3 * MOST, 3), torch.randn(1, 3 * MOST, 3)
        mixed = torch.cat([codes[:, :known], others[:, known:]], dim=1)
        torch.testing.assert_close(model.reconstruct(mixed)[:, :, :frames], model.reconstruct(codes)[:, :, :frames])
        # and the last position of a block is seen by its first
        codes[:, MOST - 1] += 1
        assert not torch.allclose(model.reconstruct(codes)[:, :, 0], model.reconstruct(mixed)[:, :, 0])


def test_tokens_take_the_number_that_is_asked_for() -> None:
    model, x = build(), videos()
    tokens = model.encode(x, num_tokens=9)
    assert tokens.indices.shape == (2, 9)
    assert tokens.extent is not None
    assert tokens.extent.places is None
    raw = model.tokens(tokens.indices, extent=(6, 8, 8))
    torch.testing.assert_close(model.decode(raw), model.decode(tokens))
    each = model.encode(x, num_tokens=[6, 24])
    assert each.lengths is not None
    assert each.lengths.tolist() == [6, 24]
    decoded = model.decode(each)
    for item, count in enumerate((6, 24)):
        alone = model.encode(x[item : item + 1], num_tokens=count)
        torch.testing.assert_close(decoded[item : item + 1], model.decode(alone))
    for wrong in (3, 10, 27):
        with pytest.raises(ValueError, match="num_tokens: expected an integer from 6 to 24 in steps of 3"):
            model.encode(x, num_tokens=wrong)


def test_the_encoder_knows_how_many_tokens_are_kept() -> None:
    model, x = build(), videos()
    fewer, all_of_them = model.encode(x, num_tokens=6), model.encode(x)
    whole = all_of_them.indices.unflatten(1, (3, MOST))
    assert not torch.equal(fewer.indices.unflatten(1, (3, 2)), whole[:, :, :2])


def test_dropped_tokens_are_zeros_for_the_decoder() -> None:
    model, x = build(), videos()
    tokens = model.encode(x, num_tokens=9)
    codes = model.codes(tokens).unflatten(1, (3, 3))
    whole = torch.cat([codes, torch.zeros(2, 3, MOST - 3, 3)], dim=2).flatten(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(tokens), model.reconstruct(whole))


def test_more_tokens_give_a_better_video(trained: ElasticTok) -> None:
    x = flat_and_busy(32, 1000)[0]
    errors = [float((trained.decode(trained.encode(x, num_tokens=n)) - x).square().mean()) for n in (9, 15, 24)]
    assert errors[0] > errors[1] > errors[2]


def test_a_quality_costs_simple_blocks_fewer_tokens_than_busy_ones(trained: ElasticTok) -> None:
    x, busy = flat_and_busy(32, 1001)
    tokens = trained.encode(x, quality=0.05)
    assert tokens.extent is not None
    assert tokens.extent.places is not None
    counts = torch.tensor(
        [[sum(place // MOST == b for place in item) for b in range(3)] for item in tokens.extent.places]
    )
    assert float(counts[~busy].float().mean()) < 0.8 * float(counts[busy].float().mean())
    errors = (trained.decode(tokens) - x).square().unflatten(2, (3, 2)).mean(dim=(1, 3, 4, 5))
    assert bool(((errors <= 0.05 + 1e-5) | (counts == MOST)).all())
    again = Tokens.unpack(tokens.pack())
    torch.testing.assert_close(trained.decode(again), trained.decode(tokens))
    alone = trained.encode(x[5:6], quality=0.05)
    assert int(alone.levels[0].shape[1]) == int(counts[5].sum())


def test_wrong_qualities_and_rows_are_refused() -> None:
    model, x = build(), videos()
    with pytest.raises(ValueError, match="expected a mean squared error > 0, got -1"):
        model.encode(x, quality=-1.0)
    with pytest.raises(ValueError, match=r"expected num_tokens or quality, got both: 9 and 0\.1"):
        model.encode(x, num_tokens=9, quality=0.1)
    with pytest.raises(ValueError, match="expected indices of shape"):
        model.tokens(torch.zeros(1, 10, dtype=torch.int64), extent=(6, 8, 8))
    with pytest.raises(ConfigError, match="least_tokens from 1 to 7, got 8"):
        CONFIG.replace(least_tokens=8)


def test_one_set_of_weights_serves_videos_of_any_number_of_blocks() -> None:
    model = build()
    longer = ElasticTok(CONFIG.replace(blocks=4)).eval()
    longer.load_state_dict(model.state_dict())
    x = torch.cat([videos(), videos()[:, :, :2]], dim=2)
    assert torch.equal(longer.encode(x).indices[:, : 3 * MOST], model.encode(videos()).indices)
