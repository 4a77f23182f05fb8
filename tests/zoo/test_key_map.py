"""KeyMap: patterns, counting from the other end, prefixes, averages, weight norm, transforms, and its errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.checkpoint import CheckpointError, KeyMap


def renamed(patterns: dict[str, str | None], keys: Iterable[str], **options: str) -> dict[str, str]:
    """Published name -> own name, told apart by a number as the value."""
    keys = list(keys)
    result = KeyMap(patterns, **options)({key: torch.tensor(i) for i, key in enumerate(keys)})  # type: ignore[arg-type]
    return {keys[int(value)]: own for own, value in result.items()}


def test_placeholders_repeat_in_order_or_by_name() -> None:
    patterns: dict[str, str | None] = {
        "encoder.down.{}.block.{}.conv{}.*": "encoder.levels.{}.blocks.{}.conv{}.*",
        "up.{level}.block_{j}.*": "blocks.{j}.of.{level}.*",
        "same.{i}.{i}.weight": "same.{i}.weight",
        "*.running_mean": "norms.*.mean",
        "quantize.embedding.weight": "codebook.weight",
        "loss.*": None,
    }
    assert renamed(
        patterns,
        [
            "encoder.down.10.block.2.conv1.weight",
            "encoder.down.0.block.0.conv2.deep.er.bias",
            "up.3.block_11.weight",
            "same.4.4.weight",
            "a.b.running_mean",
            "quantize.embedding.weight",
            "loss.discriminator.weight",
            "loss.logvar",
        ],
    ) == {
        "encoder.down.10.block.2.conv1.weight": "encoder.levels.10.blocks.2.conv1.weight",
        "encoder.down.0.block.0.conv2.deep.er.bias": "encoder.levels.0.blocks.0.conv2.deep.er.bias",
        "up.3.block_11.weight": "blocks.11.of.3.weight",
        "same.4.4.weight": "same.4.weight",
        "a.b.running_mean": "norms.a.b.mean",
        "quantize.embedding.weight": "codebook.weight",
    }


@pytest.mark.parametrize(
    "key",
    ["layers.x.norm", "layers.1", "layers.1.", "layers..norm", "layers.1.2norm", "layers.1.norm.a", "a.layers.1.norm"],
)
def test_a_pattern_matches_whole_names_and_numbers_only(key: str) -> None:
    key_map = KeyMap({"layers.{}.norm": "own.{}.norm", "layers.{}.conv.*": "own.{}.conv.*"})
    assert key_map.name(key, [key]) is None
    with pytest.raises(CheckpointError, match=re.escape(key)):
        key_map({key: torch.ones(1)})


def test_the_pattern_with_the_most_literal_text_wins_whatever_the_order() -> None:
    lines: list[tuple[str, str | None]] = [
        ("*", "rest.*"),
        ("encoder.*", "own.*"),
        ("encoder.{}.*", "layers.{}.*"),
        ("encoder.{}.conv.*", "convs.{}.*"),
        ("encoder.0.conv.weight", None),
    ]
    keys = ["x", "encoder.a", "encoder.1.norm", "encoder.1.conv.weight", "encoder.0.conv.weight"]
    for patterns in (dict(lines), dict(reversed(lines))):
        assert list(renamed(patterns, keys).values()) == ["rest.x", "own.a", "layers.1.norm", "convs.1.weight"]
    assert KeyMap({"a{}.*": "first{}.*", "a*.{}": "second*.{}"}).name("a1.2", []) == "first1.2"  # equals: the first


def test_numbers_count_from_the_other_end_of_their_own_list() -> None:
    patterns: dict[str, str | None] = {
        "decoder.up.{i}.block.{j}.*": "levels.{-i}.blocks.{-j}.*",
        "decoder.up.{i}.upsample.*": "levels.{-i}.upsample.*",
    }
    sizes = {0: 3, 1: 1, 2: 12}
    keys = [f"decoder.up.{i}.block.{j}.weight" for i, size in sizes.items() for j in range(size)]
    keys += ["decoder.up.4.upsample.weight"]  # the longest list of levels
    mapped = renamed(patterns, keys)
    for i, size in sizes.items():
        for j in range(size):
            assert mapped[f"decoder.up.{i}.block.{j}.weight"] == f"levels.{4 - i}.blocks.{size - 1 - j}.weight"
    assert mapped["decoder.up.4.upsample.weight"] == "levels.0.upsample.weight"
    assert KeyMap(patterns).name("decoder.up.2.block.0.weight", keys) == "levels.2.blocks.11.weight"


words = st.text("abcdefgh_", min_size=1, max_size=6)
pieces = st.lists(st.one_of(words, st.sampled_from(["{}", "x{}", "{}_y"])), min_size=1, max_size=5)


@given(pieces=pieces, tail=st.booleans(), data=st.data())
def test_swapping_the_sides_undoes_a_map(pieces: list[str], tail: bool, data: st.DataObject) -> None:
    published = ".".join(["root", *pieces, *["*"] * tail])
    own = published.replace("root", "own.model")
    keys = set()
    for _ in range(data.draw(st.integers(1, 8))):
        key = re.sub(r"\{\}", lambda _: str(data.draw(st.integers(0, 120))), published)
        keys.add(key.replace("*", ".".join(data.draw(st.lists(words, min_size=1, max_size=3)))))
    there = renamed({published: own}, keys)
    assert there.keys() == keys
    assert renamed({own: published}, there.values()) == {own: key for key, own in there.items()}


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_counting_from_the_other_end_twice_changes_nothing(sizes: list[int]) -> None:
    keys = [f"up.{i}.block.{j}" for i, size in enumerate(sizes) for j in range(size)]
    patterns: dict[str, str | None] = {"up.{i}.block.{j}": "up.{-i}.block.{-j}"}
    once = renamed(patterns, keys)
    assert set(once.values()) == {f"up.{len(sizes) - 1 - i}.block.{j}" for i, n in enumerate(sizes) for j in range(n)}
    twice = renamed(patterns, once.values())
    assert [twice[own] for own in once.values()] == keys


def test_prefix_is_taken_off_and_other_keys_need_a_pattern() -> None:
    patterns: dict[str, str | None] = {"encoder.*": "own.*", "discriminator.*": None}
    keys = ["module.encoder.a", "discriminator.b"]
    assert renamed(patterns, keys, prefix="module.") == {"module.encoder.a": "own.a"}
    assert KeyMap(patterns, prefix="module.").name("module.encoder.a", keys) == "own.a"
    with pytest.raises(CheckpointError, match=r"decoder\.c"):
        renamed(patterns, [*keys, "decoder.c"], prefix="module.")
    with pytest.raises(CheckpointError, match=r"both with and without 'module\.'"):
        renamed(patterns, ["module.encoder.a", "encoder.a"], prefix="module.")


def test_uncovered_keys_are_listed_by_module() -> None:
    keys = [f"decoder.up.{i}.weight" for i in range(5)] + ["head.weight", "encoder.a"]
    with pytest.raises(CheckpointError) as error:
        renamed({"encoder.*": "own.*"}, keys)
    assert str(error.value).splitlines() == [
        "6 of 7 keys are covered by no pattern of the key map:",
        "    decoder.up (5): decoder.up.0.weight, decoder.up.1.weight, decoder.up.2.weight, ...",
        "    head.weight (1): head.weight",
    ]


def test_two_keys_for_one_own_name_are_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"'own\.w' to both 'a\.w' and 'b\.w'"):
        renamed({"a.*": "own.*", "b.*": "own.*"}, ["a.w", "b.w"])


@pytest.mark.parametrize(
    "line", [("a.{}", "b"), ("a", "b.{}"), ("a.{}", "b.{}.{}"), ("a.{i}", "b.{j}"), ("a.*", "b"), ("a.{}", "b.*")]
)
def test_a_line_whose_sides_differ_is_an_error_of_the_table(line: tuple[str, str]) -> None:
    with pytest.raises(
        ValueError, match=f"same placeholders on both sides, got {line[0]!r} -> {line[1]!r}".replace("*", ".")
    ):
        KeyMap(dict([line])).name("x", [])


@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv1d(3, 8, 5),
        lambda: nn.Conv1d(3, 1, 5),
        lambda: nn.ConvTranspose1d(4, 8, 5),
        lambda: nn.Linear(6, 3),
        lambda: nn.Conv2d(3, 4, 3),
    ],
)
def test_weight_norm_folds_to_torchs_own_weight(make, spelling: str) -> None:
    torch.manual_seed(0)
    new = spelling == "parametrizations"
    norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
    module = nn.Sequential(make(), norm(make()), nn.Sequential(norm(make())))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    state = module.state_dict()
    result = KeyMap({"*": "own.*"}, weight_norm=True)(state)
    for path, layer in (("own.1", module[1]), ("own.2.0", module[2][0])):
        layer(torch.rand(1, layer.weight.shape[1 if "Tran" not in str(layer) else 0], *[9] * (layer.weight.ndim - 2)))
        assert torch.equal(result[f"{path}.weight"], layer.weight)
        assert torch.equal(result[f"{path}.bias"], layer.bias)
    assert len(result) == 6
    shapes = KeyMap({"*": "own.*"}, weight_norm=True)({key: value.to("meta") for key, value in state.items()})
    assert {key: value.shape for key, value in shapes.items()} == {key: value.shape for key, value in result.items()}
    assert all(value.is_meta for value in shapes.values())


def test_weight_norm_over_another_dimension_is_told_by_the_shape_of_the_magnitude() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 5), dim=2)
    result = KeyMap({"*": "*"}, weight_norm=True)(conv.state_dict())
    assert torch.equal(result["weight"], conv.weight)


class LitEma(nn.Module):
    """As Lightning modules keep it: shadow buffers whose names have no dots."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.999))
        self.register_buffer("num_updates", torch.tensor(0))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach() + 1)


def test_averages_replace_the_raw_weights() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.utils.weight_norm(nn.Linear(4, 4)))
    raw = dict(model.state_dict())
    model.model_ema = LitEma(model)
    key_map = KeyMap({"0.*": "encoder.*", "1.*": "head.*"}, ema="model_ema.", weight_norm=True)
    result = key_map(model.state_dict())
    assert torch.equal(result["encoder.0.weight"], raw["0.0.weight"] + 1)
    assert torch.equal(result["encoder.1.bias"], raw["0.1.bias"] + 1)
    assert torch.equal(result["encoder.1.running_var"], raw["0.1.running_var"])  # a buffer has no average
    expected = torch._weight_norm(raw["1.weight_v"] + 1, raw["1.weight_g"] + 1, 0)
    assert torch.equal(result["head.weight"], expected)  # averaged, then folded
    assert len(result) == 9
    with pytest.raises(CheckpointError, match=r"model_ema\.gone"):
        key_map(model.state_dict() | {"model_ema.gone": torch.ones(1)})
    clash = {"a.bc": torch.ones(1), "ab.c": torch.ones(1), "model_ema.abc": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"'model_ema\.abc' could be .* both 'a\.bc' and 'ab\.c'"):
        KeyMap({"*": "*"}, ema="model_ema.")(clash)


def test_transforms_reshape_by_own_name() -> None:
    def pointwise(weight: Tensor) -> Tensor:
        return weight[:, :, None, None]

    key_map = KeyMap(
        {"proj.*": "conv.*", "norm.*": "norm.*"},
        transforms={"conv.weight": pointwise, "*.weight": lambda weight: weight + 1},
    )
    state = {"proj.weight": torch.rand(2, 3), "proj.bias": torch.rand(2), "norm.weight": torch.zeros(2)}
    result = key_map(state)
    assert result["conv.weight"].shape == (2, 3, 1, 1)
    assert torch.equal(result["conv.bias"], state["proj.bias"])
    assert torch.equal(result["norm.weight"], torch.ones(2))
    assert key_map({"proj.weight": torch.empty(2, 3, device="meta")})["conv.weight"].shape == (2, 3, 1, 1)


def test_thousands_of_keys_take_no_time() -> None:
    keys = [f"model.decoder.up.{i}.block.{j}.conv{k}.weight" for i in range(20) for j in range(100) for k in range(3)]
    patterns: dict[str, str | None] = {f"decoder.other{n}.{{}}.*": f"other{n}.{{}}.*" for n in range(60)}
    patterns["decoder.up.{i}.block.{j}.conv{k}.*"] = "levels.{-i}.blocks.{-j}.conv{k}.*"
    state = {key: torch.empty(1, device="meta") for key in keys}
    start = time.perf_counter()
    result = KeyMap(patterns, prefix="model.")(state)
    assert time.perf_counter() - start < 2
    assert len(result) == 6000
    assert "levels.0.blocks.99.conv2.weight" in result


def test_finish_sees_own_names_and_may_join_tensors() -> None:
    def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"qkv": torch.cat([state[name] for name in ("q", "k", "v")])}

    key_map = KeyMap({"{}_proj": None, "attn.q": "q", "attn.k": "k", "attn.v": "v"}, finish=joined)
    state = {"0_proj": torch.zeros(1), **{f"attn.{name}": torch.full((2,), i) for i, name in enumerate("qkv")}}
    assert key_map(state)["qkv"].tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(CheckpointError, match="covered by no pattern"):
        key_map({**state, "unheard.of": torch.zeros(1)})
