"""GaussianToken: what its integers say of place and shape, and how widths are bounded in training."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_visual.gaussian_token import (
    GaussianToken,
    GaussianTokenConfig,
    ScaleSchedule,
    config_from_original,
    gaussian_quantizer,
    safe_sigmoid,
)
from tokenizers_visual.parity.gaussian_token import WholeCase
from zoo.config import ConfigError
from zoo.layers.positions import periodic_grid
from zoo.ops.splat import splat
from zoo.parity import Fixture
from zoo.registry import registry

CONFIG = GaussianTokenConfig(
    resolution=16, channels=8, channel_multipliers=(1, 2), blocks=1, norm_groups=4, width=16, gaussians=6, features=3,
    map_layers=1, stages=1, stage_layers=1, heads=2, points=2, quantizer=gaussian_quantizer(9, 3),
)  # fmt: skip


def build(bits: int = 16) -> GaussianToken:
    torch.manual_seed(0)
    model = GaussianToken(CONFIG.replace(quantizer=gaussian_quantizer(9, 3, bits))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_gaussian_is_its_code_and_five_numbers_and_all_are_counted() -> None:
    tokens = build(bits=12).encode(images())
    assert tokens.indices.shape == (2, 6, 6)  # six numbers of six Gaussians
    assert tokens.vocab_sizes == (9, *(4096,) * 5)
    assert tokens.bits == (6 * (4 + 5 * 12),) * 2


@pytest.mark.parametrize("bits", [4, 16])
def test_geometry_comes_back_to_within_half_a_step(bits: int) -> None:
    model = build(bits)
    with torch.no_grad():
        latent = model.latent(images())
    codes = model.codes(model.encode(images()))
    step = 2 / (2**bits - 1)
    assert float((codes[..., 3:] - latent[..., 3:]).abs().max()) <= step / 2 + 1e-6


def test_finer_steps_bring_the_image_closer_to_that_of_floats() -> None:
    decoded = [model.decode(model.encode(images())) for model in map(build, (3, 6, 10, 16))]
    errors = [float((image - decoded[-1]).abs().mean()) for image in decoded[:-1]]
    assert errors[0] > errors[1] > errors[2]


def test_numbers_stand_for_place_angle_and_widths() -> None:
    model = build()
    geometry = torch.tensor([-0.5, 0.25, 0.0, -1.0, 1.0])
    found = model.gaussians(torch.cat([torch.ones(3), geometry])[None, None])
    assert found.means.flatten().tolist() == [-0.5, 0.25]
    assert float(found.rotations) == pytest.approx(math.pi / 2)
    torch.testing.assert_close(found.scales.flatten(), torch.tensor([0.1, 4.0]))
    assert found.features.flatten().tolist() == [1.0, 1.0, 1.0]


def test_moving_a_gaussian_moves_what_it_paints() -> None:
    model = build()
    codes = torch.zeros(1, 1, 8)
    codes[..., :3], codes[..., 6:] = 1.0, -0.9
    with torch.no_grad():
        for x in (-0.5, 0.5):
            codes[..., 3] = x
            found = model.gaussians(codes)
            painted = splat(found.means, found.rotations, found.scales, found.features, (8, 8))[0, 0]
            column = int(painted.sum(0).argmax())
            assert column == round((x + 1) * 4)


def test_the_sigmoid_is_cut_off() -> None:
    far = safe_sigmoid(torch.tensor([-50.0, 9.3, 50.0]))
    assert far.tolist() == pytest.approx([1e-4, 1 - 1e-4, 1 - 1e-4], rel=1e-3, abs=1e-6)
    assert float(far[1]) == float(far[2])


def test_the_largest_width_falls_in_training_alone_and_not_below_its_end() -> None:
    schedule = ScaleSchedule((0.1, 4.0), final=3.9999)
    for _ in range(20):
        schedule.follow(torch.full((3,), 0.5))
    assert float(schedule.largest) == pytest.approx(3.9999)
    schedule = ScaleSchedule((0.1, 4.0), final=3.0)
    schedule.follow(torch.full((3,), 4.0))  # wider than the middle: by its distance to it
    mean = 0.99 * 2.05 + 0.01 * 4.0
    assert float(schedule.largest) == pytest.approx(4.0 - 1e-3 * (mean - 2.05))
    model = build()
    model(images())
    assert float(model.scales.largest) == 4.0
    model.train()(images())
    assert float(model.scales.largest) < 4.0


def test_configs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a resolution that is a multiple of 2"):
        CONFIG.replace(resolution=15)
    with pytest.raises(ConfigError, match="a multiple of 4"):
        CONFIG.replace(width=18, norm_groups=2)
    with pytest.raises(ConfigError, match="final_scale"):
        CONFIG.replace(final_scale=5.0)


def test_a_schedule_of_widths_that_was_saved_goes_on_as_one_that_was_not() -> None:
    schedule, other = (ScaleSchedule((0.1, 4.0), 3.0) for _ in range(2))
    for _ in range(20):
        schedule.follow(torch.full((3,), 4.0))
    other.load_state_dict(schedule.state_dict())
    for one in (schedule, other):
        one.follow(torch.full((3,), 4.0))
    assert torch.equal(other.largest, schedule.largest)


WHOLE = Fixture.read(Path(__file__).parents[1] / "parity/gaussian_token__whole")


@pytest.mark.parametrize("check", WHOLE.meta["checks"], ids=lambda check: check["check"])
def test_in_float64_it_is_the_original(check: dict) -> None:
    """But for the search of codes and what is painted, which are float32."""
    case = WholeCase(WHOLE, registry.family("gaussian_token"))
    case.model.double()
    inputs = {name: WHOLE.arrays[array] for name, array in check["inputs"].items()}
    found = getattr(case, check["check"])(inputs, check.get("settings", {}))
    painted = check["check"] in ("decode", "reconstruct", "train")
    for name, array in check["outputs"].items():
        expected = WHOLE.arrays[array]
        single = painted or name in ("means", "rotations", "scales")
        torch.testing.assert_close(
            found[name].detach().to(expected.dtype), expected, rtol=0, atol=1e-5 if single else 1e-9
        )


def test_a_network_of_another_kind_is_refused() -> None:
    def meta(part: str, **changes: object) -> dict:
        kwargs = WHOLE.meta["original"]["kwargs"]
        parts = kwargs["gs_embed_cfg"]
        return {"original": {"kwargs": {**kwargs, "gs_embed_cfg": {**parts, part: {**parts[part], **changes}}}}}

    for part, changes in (
        ("ffn_cfg", {"out_norm": True}),
        ("attn_decoder_cfg", {"residual_mode": "add"}),
        ("fm_lifter_cfg", {"pe_version": "learned"}),
        ("refine_cfg", {"include_opa": True}),
    ):
        with pytest.raises(ValueError, match="expected"):
            config_from_original(meta(part, **changes))


def test_positions_have_the_period_of_the_grid() -> None:
    table = periodic_grid(8, 6)
    assert table.shape == (1, 8, 6, 6)
    angles = (torch.arange(6) + 0.5) / 6 * 2 * math.pi
    for row in range(6):
        expected = torch.stack([angles[row].sin(), angles[row].cos(), (angles[row] / 100).sin()])
        torch.testing.assert_close(table[0, :3, row, 2], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(table[0, 4:], table[0, :4].mT)  # columns, then


def test_dropout_acts_in_training_alone() -> None:
    model = build()
    assert torch.equal(*(model.latent(images()) for _ in range(2)))
    model.train()
    assert not torch.equal(*(model.latent(images()) for _ in range(2)))
