"""Tiles: how far outputs see is what perturbations show, and tiled equals whole, whatever sees the whole image."""

import copy
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenizers_visual.compact import Compact, CompactConfig
from tokenizers_visual.open_magvit2 import OpenMAGVIT2, OpenMAGVIT2Config
from tokenizers_visual.taming_vqgan import TamingVQGAN, TamingVQGANConfig
from zoo import tiled, tiling
from zoo.layers.haar import haar, inverse_haar
from zoo.layers.resnet import Downsample, Upsample
from zoo.quantizers import BinaryConfig, FiniteScalarConfig, ResidualConfig, VectorConfig
from zoo.reach import Reach, reach_of
from zoo.tiling import tiles
from zoo.tokenizer import Tokenizer

SIDE = 48


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(torch.cat([x, -x, x, 2 * x], dim=1), 2)


class Haar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return inverse_haar(F.silu(haar(x)))


class Strips(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1, 1::2, ::2], x[:, 1:, ::2, 1::2]], dim=1)


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 5, padding=4, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) + self.inner(x)


LAYERS = {
    "convolution": lambda: nn.Conv2d(2, 2, 3, padding=1),
    "pointwise": lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU()),
    "skip": Skip,
    "strided": lambda: nn.Conv2d(2, 2, 4, stride=2, padding=1),
    "downsample": lambda: Downsample(2),
    "average": lambda: nn.AvgPool2d(2),
    "unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 1)),
    "upsample": lambda: Upsample(2),
    "shuffle": Shuffle,
    "haar": Haar,
    "strips": Strips,
    "transposed": lambda: nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1),
}
HALVE = {"strided", "downsample", "average", "unshuffle", "strips"}


def build(names: list[str]) -> nn.Sequential:
    return nn.Sequential(*(LAYERS[name]() for name in names))


def reach(network: nn.Module) -> Reach:
    outline = copy.deepcopy(network).to("meta", torch.float32)
    height, width = reach_of(outline, torch.empty(1, 2, SIDE, SIDE, device="meta"), (2, 3))
    assert height == width
    return height


@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5), st.integers(0, SIDE - 1))
def test_no_output_depends_on_more_and_the_bounds_are_nearly_met(names: list[str], row: int) -> None:
    if sum(name in HALVE for name in names) > 3:
        return
    torch.manual_seed(0)
    network = build(names).double()
    found = reach(network)
    image = torch.rand(1, 2, SIDE, 1, dtype=torch.float64).expand(-1, -1, -1, SIDE).contiguous()
    changed = image.clone()
    changed[:, :, row] += 1
    with torch.no_grad():
        before, after = network(image), network(changed)
    outputs = before.shape[2]
    assert found.scale == Fraction(SIDE, outputs)
    touched = [i for i in range(outputs) if (before[:, :, i, outputs // 2] != after[:, :, i, outputs // 2]).any()]
    allowed = [i for i in range(outputs) if found.inputs(i, i + 1, SIDE)[0] <= row < found.inputs(i, i + 1, SIDE)[1]]
    assert set(touched) <= set(allowed)
    # each resampling may round a bound up by less than one position of its own resolution
    assert len(allowed) - len(touched) <= 2 + 4 * len(names) * max(1, math.ceil(1 / found.scale))


def test_the_arithmetic_of_a_single_convolution_is_exact() -> None:
    assert reach(nn.Conv2d(2, 2, (5, 5), stride=2, padding=2)) == Reach(Fraction(2), Fraction(-2), Fraction(2))
    assert reach(Upsample(2)) == Reach(Fraction(1, 2), Fraction(-1), Fraction(1, 2))


@given(st.integers(1, 80), st.integers(1, 30), st.integers(-9, 0), st.integers(0, 9), st.sampled_from([1, 2, 4]))
def test_tiles_cover_every_output_once_and_hold_what_they_see(
    outputs: int, tile: int, before: int, after: int, multiple: int
) -> None:
    found = Reach(Fraction(multiple), Fraction(before), Fraction(after))
    inputs = outputs * multiple
    cut = list(tiles(found, inputs, outputs, tile, multiple))
    assert [place for one in cut for place in range(one.start, one.stop)] == list(range(outputs))
    for one in cut:
        assert one.first % multiple == 0
        assert one.end % multiple == 0
        first, end = found.inputs(one.start, one.stop, inputs)
        assert one.first <= first < end <= one.end


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (nn.GroupNorm(1, 2), "native_group_norm"),
        (nn.AdaptiveAvgPool2d(1), "mean"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")), "upsample_bilinear2d"),
    ],
)
def test_what_sees_everything_is_refused_by_name(network: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        reach(network)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Coordinates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.linspace(0, 1, SIDE, device=x.device).expand(1, 1, SIDE, SIDE)], dim=1)


class Unfolded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(3, 1, 1, 1, 1, device=x.device)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Positions(), "from place to place"),
        (Coordinates(), "from place to place"),
        (Unfolded(), "adds axes"),
    ],
)
def test_what_depends_on_the_place_is_refused(network: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        reach(network)


# -- models --------------------------------------------------------------------------------------------------------


def compact(quantizer: object = FiniteScalarConfig(levels=(4, 3)), seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    sizes = {"patch_size": 2, "fine_channels": 8, "channels": 12, "encoder_blocks": (1, 2), "decoder_blocks": (2, 1)}
    model = Compact(CompactConfig(quantizer=quantizer, **sizes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 8, 12, 32, 128]), st.integers(0, 2))
def test_tiled_equals_whole(height: int, width: int, tile: int, seed: int) -> None:
    model = compact(seed=seed)
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    tokens = model.encode(x)
    assert model.encode_tiled(x, tile=tile) == tokens
    image = model.decode_tiled(tokens, tile=tile)
    assert image.shape == x.shape
    torch.testing.assert_close(image, model.decode(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "quantizer",
    [VectorConfig(codebook_size=20, dim=3), ResidualConfig(VectorConfig(codebook_size=9, dim=3), num_levels=3)],
)
def test_any_quantizer_of_single_positions_is_tiled(quantizer: object) -> None:
    model = compact(quantizer)
    x = torch.rand(1, 3, 50, 70) * 2 - 1
    tokens = model.encode(x)
    assert model.encode_tiled(x, tile=16) == tokens
    torch.testing.assert_close(model.decode_tiled(tokens, tile=16), model.decode(tokens), rtol=0, atol=1e-6)


def test_a_margin_less_than_the_reach_would_show() -> None:
    """Tiles without any margin give other tokens, so equality above is owed to the margin."""
    model = compact()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    apart = torch.cat([model.encode(half).indices for half in x.split(32, dim=2)], dim=1)
    assert not torch.equal(apart, model.encode(x).indices)


def test_tokens_without_an_extent_decode_to_the_whole_grid() -> None:
    model = compact()
    tokens = replace(model.encode(torch.zeros(1, 3, 21, 30)), extent=None)
    assert model.decode_tiled(tokens, tile=8).shape == (1, 3, 24, 32)


def test_training_mode_is_left_as_it_was_and_does_not_matter() -> None:
    model = compact().train()
    x = torch.rand(1, 3, 40, 40) * 2 - 1
    assert torch.equal(model.encode_tiled(x, tile=8).indices, model.encode(x).indices)
    assert all(module.training for module in model.modules())


def test_inference_mode_changes_nothing() -> None:
    model = compact()
    x = torch.rand(1, 3, 40, 40) * 2 - 1
    tokens = model.encode_tiled(x, tile=8)
    image = model.decode_tiled(tokens, tile=8)
    with torch.inference_mode():
        assert model.encode_tiled(x, tile=8) == tokens
        assert torch.equal(model.decode_tiled(tokens, tile=8), image)


@pytest.mark.parametrize("tile", [0, -4, 6, True, 8.0])
def test_tiles_of_a_wrong_size_are_refused(tile: object) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4"):
        compact().encode_tiled(torch.zeros(1, 3, 8, 8), tile=tile)  # type: ignore[arg-type]


def test_input_is_checked_as_in_encode() -> None:
    model = compact()
    with pytest.raises(ValueError, match=r"values in \[-1.0, 1.0\]"):
        model.encode_tiled(torch.full((1, 3, 8, 8), 2.0), tile=8)
    tokens = compact(seed=1).encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="expected tokens of"):
        model.decode_tiled(tokens, tile=8)


# -- models that see the whole image -------------------------------------------------------------------------------


def random(model: Tokenizer) -> Tokenizer:
    """In double precision, so that tokens do not differ by rounding."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def taming(attention: tuple[int, ...] = (2,)) -> Tokenizer:
    sizes = {"channels": 4, "channel_multipliers": (1, 2), "blocks": 1, "latent_channels": 4, "norm_groups": 2}
    quantizer = VectorConfig(codebook_size=30, dim=3)
    return random(
        TamingVQGAN(TamingVQGANConfig(resolution=2, attention_resolutions=attention, quantizer=quantizer, **sizes))
    )


def magvit() -> Tokenizer:
    quantizer = BinaryConfig(bits=4)
    return random(
        OpenMAGVIT2(
            OpenMAGVIT2Config(channels=4, channel_multipliers=(1, 2), blocks=1, norm_groups=2, quantizer=quantizer)
        )
    )


WHOLE = {
    "group norms, attention in the middle": lambda: taming(attention=()),
    "attention at every level": lambda: taming(attention=(1, 2)),
    "group norms, moments of the codes": magvit,
}


@pytest.mark.parametrize("held", [0, 20_000, 2_400_000_000])
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("size", "tile"), [((58, 9), 32), ((15, 70), 32), ((7, 5), 8)])
def test_tiled_equals_whole_where_norms_and_attention_see_everything(
    name: str, size: tuple[int, int], tile: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "HELD", held)
    model = WHOLE[name]()
    x = torch.rand(2, 3, *size, dtype=torch.float64) * 2 - 1
    tokens = model.encode(x)
    assert len(tokens.indices.unique()) > 2
    assert model.encode_tiled(x, tile=tile) == tokens
    torch.testing.assert_close(model.decode_tiled(tokens, tile=tile), model.decode(tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["latent", "reconstruct"])
def test_passes_start_from_maps_that_may_be_held(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = taming(attention=())
    given, axes = {
        "latent": (torch.empty(1, 3, 64, 32), (2, 3)), "reconstruct": (torch.empty(1, 32, 16, 3), (1, 2))
    }[part]  # fmt: skip
    largest = 8 * 4 * 64 * 32  # bytes of a map of 4 channels in double precision
    plans = {}
    for held in (0, largest - 1, 4 * largest):
        monkeypatch.setattr(tiling, "HELD", held)
        plans[held] = tiled._passes(model, part, given.to("meta"), axes)  # type: ignore[arg-type]
    attention = ["encoder.mid.1" if part == "latent" else "decoder.mid.1"]
    none, some, all_of_them = ([step.module for step in plan if step.module is not None] for plan in plans.values())
    assert none == attention
    assert set(attention) < set(some) < set(all_of_them)
    blocks = {name for name, module in model.named_modules() if getattr(module, "may_end_a_pass", False)}
    side = "encoder." if part == "latent" else "decoder."
    assert set(all_of_them) - set(attention) == {name for name in blocks if name.startswith(side)}
    reaches = [max(step.seen.reaches[0].after for step in plan) for plan in plans.values()]
    assert reaches[0] >= reaches[1] >= reaches[2] < reaches[0]  # and with them the margins of the tiles


@pytest.mark.parametrize("name", ["group norms, attention in the middle", "group norms, moments of the codes"])
def test_no_more_than_a_tile_with_its_margin_is_computed_at_once(name: str) -> None:
    model, largest = WHOLE[name](), 0
    x = torch.rand(1, 3, 160, 4, dtype=torch.float64) * 2 - 1
    tokens = model.encode(x)

    def watch(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal largest
        largest = max(largest, result.shape[2] if not result.is_meta else 0)

    for convolution in (model.encoder.conv_in, model.decoder.conv_out):
        convolution.register_forward_hook(watch)
    model.encode_tiled(x, tile=32)
    model.decode_tiled(tokens, tile=32)
    assert 32 < largest < 120


def test_moments_differ_between_tiles_so_that_the_passes_matter() -> None:
    model = magvit()
    x = torch.rand(1, 3, 128, 64, dtype=torch.float64) * 2 - 1
    x[:, :, 64:] *= 0.1
    apart = torch.cat([model.encode(half).indices for half in x.split(64, dim=2)], dim=1)
    tokens = model.encode(x)
    assert (apart != tokens.indices)[:, :8].any()  # far from the cut too
    assert model.encode_tiled(x, tile=64) == tokens


TILED = {
    "bae", "compact", "cosmos_di", "ibq", "llamagen_vq", "maskbit", "maskgit_vq", "open_magvit2", "taming_vqgan",
    "tokenbridge",
}  # fmt: skip
TILED_ENCODERS = {"movq"}  # attentions of the decoder take the codes beside the map that they see all of


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_family_is_tiled_exactly_or_refuses(name: str) -> None:
    model = tiny.build(name)
    if model.spec.modality != "image":
        with pytest.raises(ValueError, match="encode_tiled: expected a model of images"):
            model.encode_tiled(tiny.signal(model), tile=64 * model.spec.multiple)
        return
    multiple = model.spec.multiple
    size = model.spec.size or (3 * multiple - 1, 2 * multiple)
    low, high = model.spec.value_range
    x = torch.rand(1, model.spec.channels, *size) * (high - low) + low
    if name in TILED | TILED_ENCODERS:
        model, x = model.double(), x.double()  # so that tokens do not differ by rounding
        tokens = model.encode(x)
        assert model.encode_tiled(x, tile=2 * multiple) == tokens
    if name in TILED:
        torch.testing.assert_close(
            model.decode_tiled(tokens, tile=2 * multiple), model.decode(tokens), rtol=0, atol=1e-4
        )
    elif name in TILED_ENCODERS:
        with pytest.raises(ValueError, match=r"^decode_tiled: "):
            model.decode_tiled(tokens, tile=2 * multiple)
    else:
        with pytest.raises(ValueError, match=r"^encode_tiled: "):
            model.encode_tiled(x, tile=2 * multiple)


_PEAK = """
import dataclasses, pathlib, re, sys, torch, zoo, zoo.tiling
def peak():  # in kilobytes; getrusage would count the parent of the process too
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
model = zoo.create_model(sys.argv[1], pretrained=False, **eval(sys.argv[2]))
"""
_COMPACT = ("compact_f8.photos", "{}")
_NORMS = ("open_magvit2_256", "dict(channels=8, channel_multipliers=(1, 2), blocks=1, norm_groups=4)")
_ATTENTION = (
    "taming_vqgan_f16_1024",
    "dict(channels=8, channel_multipliers=(1, 1, 1, 1, 2), blocks=1, norm_groups=4, attention_resolutions=())",
)

_LARGE = f"""{_PEAK}
coarse = torch.rand(1, 3, 75, 100, generator=torch.Generator().manual_seed(0))
photo = torch.nn.functional.interpolate(coarse, (3000, 4000), mode="bilinear") * 2 - 1
tokens = model.encode_tiled(photo)
image = model.decode_tiled(tokens)
assert image.shape == photo.shape and tokens.indices.shape == (1, 375, 500)
part = model.encode(photo[:, :, 1000:1600, 1200:1800]).indices[:, 20:-20, 20:-20]
assert torch.equal(part, tokens.indices[:, 145:180, 170:205])
window = dataclasses.replace(tokens, levels=(tokens.indices[:, 100:180, 200:280],), extent=None)
part = model.decode(window)[:, :, 160:-160, 160:-160]
torch.testing.assert_close(part, image[:, :, 960:1280, 1760:2080], rtol=0, atol=1e-6)
print(peak())
"""

_GROWTH = f"""{_PEAK}
zoo.tiling.HELD = 0  # maps that are held grow with the image, up to that bound
photo = torch.zeros(1, 3, int(sys.argv[3]), 512)
model.decode_tiled(model.encode_tiled(photo[:, :, :512], tile=128), tile=128)
start = peak()
model.decode_tiled(model.encode_tiled(photo, tile=128), tile=128)
print(peak() - start)
"""


def measure(program: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@linux
@pytest.mark.slow
def test_a_photo_of_12_megapixels_needs_less_than_4_gigabytes() -> None:
    assert measure(_LARGE, *_COMPACT) < 4_000_000


_LARGE_NORMS = f"""{_PEAK}
codes = torch.randint(1024, (1, 188, 250))
image = model.decode_tiled(model.tokens(codes, extent=(3000, 4000)), tile=1024)
assert image.shape == (1, 3, 3000, 4000) and image.std() > 0
print(peak())
"""


@linux
@pytest.mark.slow
def test_so_does_one_through_group_norms_and_attention() -> None:
    assert measure(_LARGE_NORMS, *_ATTENTION) < 4_000_000


@linux
@pytest.mark.slow
@pytest.mark.parametrize("model", [_COMPACT, _NORMS])
def test_memory_grows_by_the_image_alone(model: tuple[str, str]) -> None:
    image = 4 * 3 * 512 * (4096 - 1024) // 1024  # kilobytes of the further rows of the result
    assert measure(_GROWTH, *model, "4096") - measure(_GROWTH, *model, "1024") < 2 * image
