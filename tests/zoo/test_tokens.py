"""Tokens: packing, files, flattening, truncation and joining lose nothing; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import math
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zoo import packing
from zoo.tokens import PAD, Extent, Source, Tokens, flat_slots, integers

VOCABULARIES = st.one_of(
    st.integers(1, 20), st.sampled_from([255, 256, 257, 1 << 14, 64000, 1 << 18, 1 << 40, 1 << 62])
)
SOURCES = st.none() | st.builds(Source, st.text(max_size=12), st.text("0123456789abcdef", max_size=16))


def random_level(shape: tuple[int, ...], vocab_size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, vocab_size, shape, generator=generator)
    if level.numel() > 1:  # the bounds are where packing would break
        level.view(-1)[0], level.view(-1)[-1] = vocab_size - 1, 0
    return level


@st.composite
def tokens_of(draw: st.DrawFn, layouts: tuple[str, ...] = ("grid", "sequence", "frames", "scales")) -> Tokens:
    """Tokens of any layout; `scales` in whole multiples of the first level's length, so that any order can lay them."""
    layout = draw(st.sampled_from(layouts))
    batch, seed = draw(st.integers(0, 4)), draw(st.integers(0, 2**31))
    count = draw(st.integers(1, 4))
    side = st.integers(0, 6)
    shapes: list[tuple[int, ...]]
    if layout == "grid":
        shapes = [(draw(side), draw(side))] * count
    elif layout == "scales" and draw(st.booleans()):  # grids of growing size
        shapes = [(scale, scale) for scale in (1, 2, 4, 8)[:count]]
    elif layout == "scales":
        first = draw(st.integers(1, 4))
        shapes = [(first * draw(st.sampled_from([1, 2, 3, 4])),) for _ in range(count)]
        shapes[0] = (first,)
    else:
        shapes = [(draw(st.integers(0, 12)),)] * count
    # the joint vocabulary of flatten must fit into int64
    vocab_sizes = (
        [draw(VOCABULARIES) for _ in shapes] if count == 1 else [draw(st.integers(1, 1 << 20)) for _ in shapes]
    )
    levels = [random_level((batch, *shape), size, seed + q) for q, (shape, size) in enumerate(zip(shapes, vocab_sizes))]
    lengths = None
    if len(shapes[0]) == 1 and draw(st.booleans()):
        rows = [
            [draw(st.integers(0, shape[0])) for shape in (shapes if layout == "scales" else shapes[:1])]
            for _ in range(batch)
        ]
        lengths = torch.tensor(rows, dtype=torch.int64).view(batch, len(shapes) if layout == "scales" else 1)
        of_level = lengths.expand(-1, count)
        for q, level in enumerate(levels):
            level *= torch.arange(level.shape[1]) < of_level[:, q, None]
        lengths = lengths if layout == "scales" else lengths[:, 0]
    axes = 1 if layout == "frames" else 2
    rate = draw(st.sampled_from([16000, 44100])) if layout == "frames" else None
    size = st.tuples(*[st.integers(1, 5000)] * axes)
    extent = draw(st.none() | st.builds(Extent, st.tuples(*[size] * batch), st.just(rate)))
    return Tokens(
        tuple(levels),
        tuple(vocab_sizes),
        layout,  # type: ignore[arg-type]
        lengths,
        draw(SOURCES),
        extent,
        draw(st.sampled_from([None, "positions", "levels"])),
    )


def grid(batch: int = 2, side: int = 4, vocab_size: int = 100, **fields) -> Tokens:
    return Tokens((random_level((batch, side, side), vocab_size, 0),), (vocab_size,), "grid", **fields)


def ragged_sequence() -> Tokens:
    level = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]])
    return Tokens((level,), (10,), "sequence", lengths=torch.tensor([4, 2, 0]), prefix="positions")


# -- storage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(tokens_of())
def test_packing_loses_nothing(tokens: Tokens) -> None:
    assert Tokens.unpack(tokens.pack()) == tokens


@settings(max_examples=60)
@given(tokens_of(), st.sampled_from(["tokens.ztk", "tokens.safetensors", "tokens"]))
def test_saving_loses_nothing_and_leaves_one_file(tmp_path: Path, tokens: Tokens, name: str) -> None:
    path = tmp_path / name
    tokens.save(path)
    assert Tokens.load(path) == tokens
    assert {file.name for file in tmp_path.iterdir()} <= {"tokens.ztk", "tokens.safetensors", "tokens"}


@given(tokens_of())
def test_bits_are_exact(tokens: Tokens) -> None:
    for b in range(len(tokens)):
        expected = 0
        for q, (level, size) in enumerate(zip(tokens.levels, tokens.vocab_sizes)):
            width = next(width for width in range(64) if 2**width >= size)
            length = math.prod(level.shape[1:])
            if tokens.lengths is not None:
                length = int(tokens.lengths[b, q] if tokens.lengths.ndim == 2 else tokens.lengths[b])
            expected += width * length
        assert tokens.bits[b] == expected
    assert len(tokens.bits) == len(tokens)


def test_packed_size_is_a_short_header_and_the_bits() -> None:
    """A photo of 256 x 256 pixels as 32 x 32 tokens of 16 bits."""
    source, extent = Source("compact_f8.photos", "0123456789abcdef"), Extent(((256, 256),))
    tokens = grid(batch=1, side=32, vocab_size=64000, source=source, extent=extent)
    assert len(tokens.pack()) - math.ceil(sum(tokens.bits) / 8) < 60


def test_saved_file_replaces_the_old_one_and_is_readable_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = tmp_path / "tokens.ztk"
    path.write_bytes(b"old")
    grid().save(path)
    assert Tokens.load(path) == grid()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_failed_saving_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        grid().save(tmp_path / "folder")
    with pytest.raises(OSError):
        grid().save(tmp_path / "absent" / "tokens.ztk")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def refused_or_tokens(data: bytes) -> None:
    """Whatever the bytes: Tokens, or a ValueError; no other error, and in reasonable time and memory."""
    try:
        tokens = Tokens.unpack(data)
    except ValueError:
        return
    assert isinstance(tokens, Tokens)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_bytes_are_tokens_or_a_value_error(data: bytes, with_magic: bool) -> None:
    refused_or_tokens(packing.MAGIC + bytes([packing.VERSION]) + data if with_magic else data)


@settings(max_examples=100)
@given(tokens_of(), st.data())
def test_truncated_packed_tokens_are_a_value_error(tokens: Tokens, data: st.DataObject) -> None:
    packed = tokens.pack()
    with pytest.raises(ValueError):
        Tokens.unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(ValueError):
        Tokens.unpack(packed + b"\0")


@settings(max_examples=300)
@given(tokens_of(), st.data())
def test_flipped_bits_are_tokens_or_a_value_error(tokens: Tokens, data: st.DataObject) -> None:
    packed = bytearray(tokens.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused_or_tokens(bytes(packed))


def header(*numbers: int) -> bytes:
    return packing.MAGIC + bytes([packing.VERSION]) + b"".join(map(packing._varint, numbers))


@pytest.mark.parametrize(
    "data",
    [
        header(1, 0, 1 << 20, 1, 1, 1, 1 << 20, 0, 0, 0),  # 2^40 indices of no bits
        header(1, 0, 1, 1, 16, 1, 1 << 40, 1, 0, 0, 0),  # an empty item in a row of 2^40
        header(1, 0, 1 << 40, 1, 1, 1, 0, 0, 0, 1, 0, 0),  # 2^40 items of no axes
        header(1, 0, 0, 1, 1, 1, 1 << 64, 0, 0, 0),  # a side beyond int64
        header(0, 0, 0, 1, 1, 2, 1 << 40, 1 << 40, 0, 0, 0),
        header(0, 0, 1, 1, 2, 2, 1, 1, 1, 1, 0, 0) + b"\0",  # lengths of a grid
        header(1, 0, 1, 1, 2, 0, 1, 0, 0, 0),  # lengths without positions
        header(1, 0, 1, 1, 2, 1, 1, 1, 8, 0, 0) + b"\0",  # longer than its row
        header(1, 0, 1, 1, 2, 1, 1, 1, 1 << 65, 0, 0),
        header(1, 0, 1, 1, 1 << 68, 1, 1, 0, 0, 0) + bytes(9),  # a vocabulary beyond int64
        header(1, 0, 1, 1, 0, 1, 1, 0, 0, 0) + b"\0",  # of no codes
        header(1, 0, 1, 0, 0, 0, 0),  # no levels
        header(1, 0, 1, 1 << 40, 0, 0, 0),
        header(9, 0, 1, 1, 1, 1, 1, 0, 0, 0),  # an unknown layout
        header(1, 0, 1, 1, 2, 1, 1, 0, 1, 2) + b"\xff\xfe" + header(0)[4:] * 2 + b"\0",  # a name that is no text
    ],
)
def test_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Tokens.unpack(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", r"\(they begin with b'ZTK'\), got b''"),
        (lambda data: b"GIF89a" + data, "got b'GIF89a"),
        (lambda data: data[:3] + b"\x02" + data[4:], "version 1, got 02"),
        (lambda data: data[:-1], "expected 28 bytes of indices, got 27"),
        (lambda data: data[:6], "end in their header, after 6 bytes"),
        (lambda data: data[:10], "the header states 2 values, 0 bytes follow"),
    ],
)
def test_refusal_says_expected_and_got(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokens.unpack(change(grid().pack()))


@pytest.mark.parametrize(
    "about",
    [
        "{}",
        "[]",
        "null",
        "{",
        '{"version": 2}',
        '{"version": 1, "vocab_sizes": [10], "layout": "grid"}',
        '{"version": 1, "vocab_sizes": [10, 10], "layout": "grid", "prefix": null, "source": null, "extent": null}',
        '{"version": 1, "vocab_sizes": ["10"], "layout": "grid", "prefix": null, "source": null, "extent": null}',
        '{"version": 1, "vocab_sizes": 10, "layout": "grid", "prefix": null, "source": null, "extent": null}',
        '{"version": 1, "vocab_sizes": [10], "layout": [], "prefix": null, "source": null, "extent": null}',
        '{"version": 1, "vocab_sizes": [10], "layout": "grid", "prefix": null, "source": ["a"], "extent": null}',
        '{"version": 1, "vocab_sizes": [10], "layout": "grid", "prefix": null, "source": null, "extent": 5}',
        '{"version": 1, "vocab_sizes": [10], "layout": "grid", "prefix": null, "source": null, "extent": [[5], null]}',
    ],
)
def test_safetensors_that_hold_no_tokens_are_a_value_error_that_names_the_file(tmp_path: Path, about: str) -> None:
    path = tmp_path / "tokens.safetensors"
    save_file({"levels.0": torch.zeros(1, 2, 2, dtype=torch.int64)}, path, {"tokens": about})
    with pytest.raises(ValueError, match=r"tokens\.safetensors: "):
        Tokens.load(path)


@settings(max_examples=60)
@given(tokens_of(), st.data())
def test_damaged_files_are_tokens_or_a_value_error(tmp_path: Path, tokens: Tokens, data: st.DataObject) -> None:
    path = tmp_path / "tokens.safetensors"
    tokens.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        loaded = Tokens.load(path)
    except ValueError:
        return
    assert isinstance(loaded, Tokens)


def test_files_of_something_else(tmp_path: Path) -> None:
    for content in (b"", b"{}", b"\x89PNG\r\n", b"x" * 1000):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match="x: expected"):
            Tokens.load(tmp_path / "x")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a file of tokens"):
        Tokens.load(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        Tokens.load(tmp_path / "absent")


# -- one id stream -----------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(tokens_of(), st.sampled_from(["frame", "level"]))
def test_flattening_loses_nothing(tokens: Tokens, order: str) -> None:
    ids = tokens.flatten(order)  # type: ignore[arg-type]
    assert ids.shape[0] == len(tokens)
    assert ids.dtype == torch.int64
    assert tokens.unflatten(ids, order) == tokens  # type: ignore[arg-type]


@given(tokens_of(), st.sampled_from(["frame", "level"]))
def test_ids_are_the_indices_each_in_the_range_of_its_level(tokens: Tokens, order: str) -> None:
    ids = tokens.flatten(order)  # type: ignore[arg-type]
    for b, row in enumerate(ids):
        row = row[row != PAD]
        assert len(row) == (
            sum(math.prod(level.shape[1:]) for level in tokens.levels)
            if tokens.lengths is None
            else int(tokens.lengths[b].sum()) * (1 if tokens.layout == "scales" else len(tokens.levels))
        )
        for q, (offset, size) in enumerate(zip(tokens.offsets, tokens.vocab_sizes)):
            mine = row[(row >= offset) & (row < offset + size)] - offset
            level = tokens.levels[q][b].flatten()
            if tokens.lengths is not None:
                level = level[: int(tokens.lengths[b, q] if tokens.lengths.ndim == 2 else tokens.lengths[b])]
            assert torch.equal(mine, level)


def test_orders_of_frames() -> None:
    levels = (torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4, 5]]))
    tokens = Tokens(levels, (10, 10), "frames")
    assert tokens.flatten("frame").tolist() == [[0, 13, 1, 14, 2, 15]]
    assert tokens.flatten("level").tolist() == [[0, 1, 2, 13, 14, 15]]


def test_frame_order_of_scales_interleaves_whole_multiples() -> None:
    levels = (torch.tensor([[0, 1]]), torch.tensor([[2, 3, 4, 5]]), torch.tensor([[6, 7]]))
    tokens = Tokens(levels, (10, 10, 10), "scales")
    assert tokens.flatten("frame").tolist() == [[0, 12, 13, 26, 1, 14, 15, 27]]
    with pytest.raises(ValueError, match=r"whole multiples, got \[2, 3\]; use 'level'"):
        Tokens((torch.zeros(1, 2).long(), torch.zeros(1, 3).long()), (2, 2), "scales").flatten("frame")


def test_rows_of_shorter_items_end_in_padding() -> None:
    assert ragged_sequence().flatten().tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD], [PAD] * 4]


def test_ids_that_do_not_fit_are_refused() -> None:
    tokens = Tokens((torch.tensor([[0, 1]]), torch.tensor([[2, 3]])), (10, 5), "frames")
    ids = tokens.flatten()
    for wrong, message in (
        (ids[:, :-1], "expected 4 ids an item, got 3"),
        (ids[0], r"expected int64 ids \(B, N\)"),
        (ids.int(), r"expected int64 ids \(B, N\), got torch.int32"),
        (ids.flip(1), "inside the range of its level"),
        (ids + 10, "inside the range of its level"),
        (ids.clamp(max=2) - 1, "inside the range of its level"),
    ):
        with pytest.raises(ValueError, match=message):
            tokens.unflatten(wrong)
    with pytest.raises(ValueError, match="order: expected 'frame' or 'level', got 'depth'"):
        tokens.flatten("depth")  # type: ignore[arg-type]
    ragged = ragged_sequence()
    with pytest.raises(ValueError, match="expected 2 ids and then -1, got 4"):
        ragged.unflatten(ragged.flatten()[[0, 0, 2]])
    with pytest.raises(ValueError, match="expected 4 ids"):
        ragged.unflatten(ragged.flatten()[:, :3])
    with pytest.raises(ValueError, match="expected ids of 3 items, got 2"):
        ragged.unflatten(ragged.flatten()[:2])
    with pytest.raises(ValueError, match="inside the range of its level"):
        ragged.unflatten(ragged.flatten()[[1, 1, 2]])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_slots_are_a_permutation(multiples: list[int], first: int) -> None:
    counts = [first, *(first * m for m in multiples if m > 0)]
    for order in ("frame", "level"):
        assert sorted(flat_slots(counts, order).tolist()) == list(range(sum(counts)))


# -- views -------------------------------------------------------------------------------------------------------------


def test_indices_have_the_shape_that_users_expect() -> None:
    level = torch.zeros(2, 3, dtype=torch.int64)
    square = torch.zeros(2, 3, 4, dtype=torch.int64)
    assert Tokens((square,), (2,), "grid").indices.shape == (2, 3, 4)
    assert Tokens((square, square), (2, 2), "grid").indices.shape == (2, 2, 3, 4)
    assert Tokens((level,), (2,), "sequence").indices.shape == (2, 3)
    assert Tokens((level,), (2,), "frames").indices.shape == (2, 1, 3)
    assert Tokens((level,) * 4, (2,) * 4, "frames").indices.shape == (2, 4, 3)
    assert Tokens((level[:, :1], level, square), (2,) * 3, "scales").indices.shape == (2, 1 + 3 + 12)


@given(tokens_of(), st.data())
def test_indexing_takes_items_with_all_that_belongs_to_them(tokens: Tokens, data: st.DataObject) -> None:
    assume(len(tokens) > 0)
    chosen = data.draw(st.lists(st.integers(-len(tokens), len(tokens) - 1), max_size=5))
    part = tokens[chosen]
    assert len(part) == len(chosen)
    for row, item in enumerate(chosen):
        assert part[row] == tokens[item]
        assert part.bits[row] == tokens.bits[item]
    assert tokens[:] == tokens
    assert len(tokens[1:]) == len(tokens) - 1
    with pytest.raises(IndexError, match="expected items in"):
        tokens[len(tokens)]


def test_items_are_chosen_by_the_integers_of_torch_and_numpy() -> None:
    tokens = Tokens((random_level((3, 4), 9, 0),), (9,), "sequence")
    for items in (np.int64(2), torch.tensor(2), torch.tensor([2]), np.array([2]), [np.int64(2)]):
        assert tokens[items] == tokens[2]
    for mask in (torch.tensor([True, False, True]), np.array([True, False, True]), [True, False, True], True):
        with pytest.raises(IndexError, match=r"expected items in \[0, 3\)"):
            tokens[mask]


def test_integers_of_every_width_are_taken() -> None:
    for dtype in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64):
        assert torch.equal(integers(torch.tensor([0, 5]).to(dtype)), torch.tensor([0, 5]))
    for wrong in (torch.zeros(2, dtype=torch.bool), torch.zeros(2), torch.zeros(2, dtype=torch.complex64), [0, 5]):
        with pytest.raises(ValueError, match="integers, got"):
            integers(wrong)


@given(tokens_of(), st.data())
def test_cat_undoes_indexing(tokens: Tokens, data: st.DataObject) -> None:
    assume(len(tokens) > 0)
    cut = data.draw(st.integers(0, len(tokens)))
    assert Tokens.cat([tokens[:cut], tokens[cut:]]) == tokens
    assert Tokens.cat([tokens[i] for i in range(len(tokens))]) == tokens


def test_cat_of_different_lengths_notes_them() -> None:
    short, long = (Tokens((random_level((2, n), 9, n),), (9,), "sequence") for n in (3, 5))
    joined = Tokens.cat([short, long])
    assert joined.lengths is not None
    assert joined.lengths.tolist() == [3, 3, 5, 5]
    assert joined.bits == short.bits + long.bits
    assert torch.equal(joined.levels[0][:2, :3], short.levels[0])
    frames = [Tokens((random_level((1, n), 9, n),) * 2, (9, 9), "frames") for n in (3, 5)]
    assert Tokens.cat(frames).flatten().shape == (2, 10)
    scales = [Tokens((random_level((1, n), 9, n), random_level((1, 2 * n), 9, n)), (9, 9), "scales") for n in (3, 5)]
    assert Tokens.cat(scales).lengths.tolist() == [[3, 6], [5, 10]]  # type: ignore[union-attr]


def test_cat_refuses_what_does_not_belong_together() -> None:
    one = grid(source=Source("a", "1"), extent=Extent(((8, 8),) * 2))
    for other, message in (
        (dataclasses.replace(one, source=Source("a", "2")), "source: expected"),
        (dataclasses.replace(one, vocab_sizes=(101,)), r"vocab_sizes: expected \(100,\), got \(101,\)"),
        (dataclasses.replace(one, prefix="levels"), "prefix: expected None, got levels"),
        (grid(side=3, source=one.source), "expected equal shapes"),
        (dataclasses.replace(one, extent=Extent(((8, 8),) * 2, 16000)), "expected one sample rate"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokens.cat([one, other])
    with pytest.raises(ValueError, match="at least one batch"):
        Tokens.cat([])


def test_truncation_is_legal_only_where_prefixes_mean_something() -> None:
    with pytest.raises(ValueError, match="tokens of a cannot be truncated"):
        grid(source=Source("a", "1")).truncate(1)
    tokens = ragged_sequence()
    assert tokens.truncate(3).levels[0].tolist() == [[1, 2, 3], [5, 6, 0], [0, 0, 0]]
    assert tokens.truncate(3).lengths.tolist() == [3, 2, 0]  # type: ignore[union-attr]
    assert tokens.truncate(4) == tokens
    for k in (0, 5, -1, True, 2.0):
        with pytest.raises(ValueError, match="expected 1 to 4 positions, got"):
            tokens.truncate(k)  # type: ignore[arg-type]


def test_truncation_by_levels() -> None:
    level = random_level((2, 5), 10, 0)
    tokens = Tokens((level, level, level), (10, 20, 30), "frames", prefix="levels")
    assert tokens.truncate(2) == Tokens((level, level), (10, 20), "frames", prefix="levels")
    ragged = Tokens.cat(
        [Tokens((level[:, :n], level[:, : 2 * n]), (10, 20), "scales", prefix="levels") for n in (1, 2)]
    )
    cut = ragged.truncate(1)
    assert cut.lengths.tolist() == [[1], [1], [2], [2]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="expected 1 to 3 levels, got 4"):
        tokens.truncate(4)


def test_equality_sees_every_difference() -> None:
    tokens = grid(source=Source("a", "1"), extent=Extent(((8, 8),) * 2))
    other_level = tokens.levels[0].clone()
    other_level[0, 0, 0] = 5
    assert tokens == grid(source=Source("a", "1"), extent=Extent(((8, 8),) * 2))
    for change in (
        {"levels": (other_level,)},
        {"vocab_sizes": (101,)},
        {"source": None},
        {"extent": None},
        {"prefix": "positions"},
    ):
        assert dataclasses.replace(tokens, **change) != tokens
    assert tokens != "tokens"
    assert ragged_sequence() != dataclasses.replace(ragged_sequence(), lengths=torch.tensor([4, 3, 0]))


def test_device_moves_all_tensors() -> None:
    moved = ragged_sequence().to("cpu")
    assert moved.device.type == "cpu"
    assert moved == ragged_sequence()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "cube"}, "layout: expected one of grid, sequence, frames, scales, got 'cube'"),
        ({"levels": ()}, "expected a vocabulary size per level"),
        ({"vocab_sizes": (10, 10)}, "expected a vocabulary size per level"),
        ({"vocab_sizes": (0,)}, r"vocabulary sizes >= 1, got \(0,\)"),
        ({"vocab_sizes": (10.5,)}, "vocabulary sizes >= 1"),
        ({"levels": (torch.zeros(2, 3, 3),)}, "expected int64 indices, got torch.float32"),
        ({"levels": (torch.zeros(2, 3).long(),)}, "layout grid: expected 2 or 3 position axes, got"),
        ({"levels": (torch.zeros(2).long(),), "layout": "scales"}, "position axes"),
        ({"levels": (torch.full((1, 1, 1), 10),)}, r"expected indices in \[0, 10\), got 10 to 10"),
        ({"levels": (torch.full((1, 1, 1), -1),)}, r"expected indices in \[0, 10\), got -1"),
        (
            {"levels": (torch.zeros(1, 2).long(), torch.zeros(2, 2).long()), "layout": "scales", "vocab_sizes": (2, 2)},
            r"equal batch sizes, got \[1, 2\]",
        ),
        (
            {"levels": (torch.zeros(1, 2).long(), torch.zeros(1, 3).long()), "layout": "frames", "vocab_sizes": (2, 2)},
            "levels of one shape",
        ),
        ({"lengths": torch.tensor([1, 1])}, "layout grid with shape .* takes no lengths"),
        ({"extent": Extent(((8, 8),))}, "expected an extent of 2 items, got 1"),
        ({"prefix": "columns"}, "prefix: expected"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    valid = {"levels": (torch.zeros(2, 3, 3).long(),), "vocab_sizes": (10,), "layout": "grid"}
    with pytest.raises(ValueError, match=message):
        Tokens(**{**valid, **fields})


@pytest.mark.parametrize("sizes", [((8, 8), (8,)), ((),), ((0, 8),), ((8.0, 8),), (("8", "8"),)])
def test_extents_that_are_no_sizes_are_refused(sizes: tuple) -> None:
    with pytest.raises(ValueError, match="extent: expected"):
        Extent(sizes)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([4, 2]), r"lengths: expected int64 \(3,\)"),
        (torch.tensor([4.0, 2.0, 0.0]), r"lengths: expected int64 \(3,\), got torch.float32"),
        (torch.tensor([5, 2, 0]), "lengths: expected 0 to 4"),
        (torch.tensor([-1, 2, 0]), "lengths: expected 0 to 4"),
        (torch.tensor([4, 1, 0]), "expected zeros beyond an item's length"),
        (torch.tensor([[4], [2], [0]]), r"lengths: expected int64 \(3,\)"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ragged_sequence(), lengths=lengths)
