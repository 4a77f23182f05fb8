"""Data modules: every source gives the same images, the order is exact, and nothing is left out in silence."""

import io
import itertools
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from trainers.data import ImageData
from trainers.data.loading import BatchLoader, IndexedBatches, Reader, ShardedBatches, Split
from trainers.data.rows import ImagePairs
from trainers.data.transforms import RandomScaleCrop, augmentation
from zoo.media import MediaError
from zoo.media.image import evaluation_crop
from zoo.media.sources import IndexedSource, Record, Shard, ShardedSource, Skipped, open_source

SIZE = 16


def picture(number: int, side: int = 20) -> Image.Image:
    """A picture whose red channel is its number, so that batches tell which pictures are in them."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 8, 3), np.uint8)
    pixels[..., 0] = number
    return Image.fromarray(pixels)


def encoded(number: int) -> bytes:
    picture(number).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def numbers(images: Tensor) -> list[int]:
    return (images[:, 0].mean((1, 2)) * 255).round().long().tolist()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 pictures."""
    path = tmp_path_factory.mktemp("folder")
    for number in range(23):
        (path / f"{number:03}.png").write_bytes(encoded(number))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in 4 shards of 9, 7, 0 and 7, with captions beside them."""
    path = tmp_path_factory.mktemp("shards")
    for name, part in enumerate([range(9), range(9, 16), range(0), range(16, 23)]):
        members = {f"{n:03}.{kind}": encoded(n) if kind == "png" else b"text" for n in part for kind in ("png", "txt")}
        shard(path / f"{name:02}.tar", members)
    return path


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as structs in one file, in row groups of 6."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path_factory.mktemp("parquet") / "images.parquet"
    rows = [{"bytes": encoded(number), "path": None} for number in range(23)]
    parquet.write_table(pa.table({"label": list(range(23)), "image": rows}), path, row_group_size=6)
    return path


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as `datasets` saves them."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path_factory.mktemp("arrow") / "images"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(23)], "label": list(range(23))}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


@pytest.fixture(params=["folder", "shards", "braces", "parquet", "arrow", "stream"])
def place(request: pytest.FixtureRequest, folder: Path, shards: Path) -> str:
    """The same pictures in every kind of place."""
    if request.param == "braces":
        return str(shards / "{00..03}.tar")
    if request.param == "stream":
        return f"hf:{request.getfixturevalue('arrow')}?streaming=true"
    return str(request.getfixturevalue(request.param))


def test_every_source_has_the_same_images_and_reads_their_own_bytes(place: str) -> None:
    records = [item for item in open_source(place).records() if isinstance(item, Record)]
    assert [record.data for record in records] == [encoded(number) for number in range(23)]
    assert len({record.name for record in records}) == 23


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_gives_every_image_once_by_the_evaluation_crop(place: str, workers: int) -> None:
    data = ImageData(place, val=place, size=SIZE, batch_size=4, workers=workers)
    images = torch.cat(list(data.val_dataloader()))
    assert sorted(numbers(images)) == list(range(23))
    first = images[numbers(images).index(5)]
    expected = evaluation_crop(np.asarray(picture(5)), (SIZE, SIZE))
    assert torch.equal((first * 255).round().byte().permute(1, 2, 0), torch.from_numpy(expected))


def test_training_orders_differ_by_epoch_and_seed_and_are_reproducible(place: str) -> None:
    def epochs(seed: int) -> list[list[int]]:
        data = ImageData(place, size=SIZE, batch_size=4, workers=0, seed=seed, shuffle_buffer=8)
        loader = data.train_dataloader()
        return [[number for batch in loader for number in numbers(batch)] for _ in range(2)]

    first, second = epochs(0)
    assert epochs(0) == [first, second]
    assert first != second
    assert epochs(1)[0] != first
    assert set(Counter(first).values()) == {1}
    assert len(first) == (23 if isinstance(open_source(place), ShardedSource) else 20)  # what fills no batch waits


def test_the_order_of_a_folder_does_not_depend_on_the_workers(folder: Path) -> None:
    orders = []
    for workers in (0, 1, 3):
        loader = ImageData(str(folder), size=SIZE, batch_size=4, workers=workers).train_dataloader()
        orders.append(torch.stack(list(loader)))
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_loading_leaves_the_random_state_of_the_run_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    list(ImageData(str(folder), size=SIZE, batch_size=4).train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


# -- splits --------------------------------------------------------------------------------------------------------


class Numbers(IndexedSource):
    """Pictures without files."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        return Record(str(index), str(index).encode())


class NumberShard(Shard):
    def __init__(self, name: str, content: list[int]) -> None:
        self.name, self.content = name, content

    def records(self, start: int = 0) -> Iterator[Record | Skipped]:
        for number in self.content[start:]:
            yield Record(str(number), str(number).encode())


class NumberShards(ShardedSource):
    def __init__(self, sizes: list[int]) -> None:
        starts = np.cumsum([0, *sizes])
        self.shards = [
            NumberShard(str(i), list(range(start, start + size))) for i, (start, size) in enumerate(zip(starts, sizes))
        ]


class NumberReader(Reader):
    def __call__(self, record: Record, key: Any) -> Tensor:
        return torch.full((1,), int(record.data))


READER = NumberReader(1, None)


@given(
    count=st.integers(1, 60),
    world=st.integers(1, 4),
    size=st.integers(2, 7),
    train=st.booleans(),
)
def test_processes_share_an_indexed_source_without_duplicates_or_losses(
    count: int, world: int, size: int, train: bool
) -> None:
    if count < world:
        with pytest.raises(MediaError, match="at least one image"):
            _ = IndexedBatches(Numbers(count), READER, Split(0, world, size), train=train, workers=0).length
        return
    parts = [
        IndexedBatches(Numbers(count), READER, Split(r, world, size), train=train, workers=0) for r in range(world)
    ]
    batches = [[batch.images.flatten().tolist() for batch in part] for part in parts]
    assert len({len(part) for part in batches}) == 1
    assert all(1 <= len(batch) <= size for part in batches for batch in part)
    seen = Counter(number for part in batches for batch in part for number in batch)
    assert set(seen.values()) == {1}
    if not train:
        assert sorted(seen) == list(range(count))
    elif count >= world * size:
        assert {len(batch) for part in batches for batch in part} == {size}
        assert len(seen) == count // (world * size) * world * size


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    world=st.integers(1, 3),
    workers=st.integers(1, 3),
    size=st.integers(1, 5),
    train=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_workers_of_all_processes_share_shards_without_duplicates_or_losses(
    sizes: list[int], world: int, workers: int, size: int, train: bool, epoch: int
) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world):
        batches = sharded(sizes, rank=rank, world=world, workers=workers, size=size, train=train)
        batches.start(batches.beginning(epoch))
        for worker in range(workers):
            batches._worker = lambda worker=worker: worker  # type: ignore[method-assign]
            seen.update(number for batch in batches for number in batch.images.flatten().tolist())
    assert seen == Counter(range(sum(sizes)))


def sharded(
    sizes: list[int],
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
    size: int = 4,
    train: bool = True,
    epoch_images: int | None = None,
    buffer: int = 5,
) -> ShardedBatches:
    split = Split(rank, world, size)
    return ShardedBatches(
        NumberShards(sizes), READER, split, train=train, workers=workers, buffer=buffer, epoch_images=epoch_images
    )


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), size=st.integers(1, 5), per_epoch=st.integers(5, 30))
def test_epochs_of_a_fixed_size_lose_nothing_between_them(sizes: list[int], size: int, per_epoch: int) -> None:
    """Read one after the other, they are pass after pass: each image as often as any other."""
    loader = BatchLoader(sharded(sizes, size=size, epoch_images=per_epoch), workers=0)
    seen: list[int] = []
    while len(seen) < 3 * sum(sizes):
        epoch = [number for batch in loader for number in batch.flatten().tolist()]
        assert len(epoch) == len(loader) * size
        seen += epoch
    for start in range(0, len(seen) - sum(sizes) + 1, sum(sizes)):
        assert sorted(seen[start:][: sum(sizes)]) == list(range(sum(sizes)))


def test_shards_of_unknown_size_on_several_processes_need_a_size_of_epoch(
    shards: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageData, "_split", lambda self: Split(0, 2, 4))
    with pytest.raises(ValueError, match="epoch_images"):
        ImageData(str(shards), size=SIZE).train_dataloader()
    assert len(ImageData(str(shards), size=SIZE, epoch_images=16).train_dataloader()) == 2
    assert len(ImageData(str(parquet), size=SIZE).train_dataloader()) == 23 // 8


# -- resuming ------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(sum),
    size=st.integers(1, 5),
    buffer=st.integers(1, 9),
    epoch_images=st.none() | st.integers(5, 40),
    stop=st.integers(0, 25),
)
def test_shards_go_on_at_any_batch(
    sizes: list[int], size: int, buffer: int, epoch_images: int | None, stop: int
) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(sharded(sizes, size=size, buffer=buffer, epoch_images=epoch_images), workers=0)

    def batches(loader: BatchLoader) -> Iterator[Tensor]:
        while True:
            yield from loader

    through = batches(loader())
    stopped = loader()
    running = batches(stopped)
    for _ in range(stop):
        next(running)
        next(through)
    resumed = loader()
    resumed.seek(stopped.position())
    for got, expected in zip(batches(resumed), itertools.islice(through, 12)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_shards_go_on_with_several_workers(shards: Path, stop: int) -> None:
    def loader() -> BatchLoader:
        data = ImageData(str(shards), size=SIZE, batch_size=3, workers=3, shuffle_buffer=4, epoch_images=24)
        return data.train_dataloader()

    whole = loader()
    expected = [batch for _ in range(2) for batch in whole]
    stopped = loader()
    for _, _ in zip(range(stop), stopped):
        pass
    resumed = loader()
    resumed.seek(stopped.position())
    got = [*resumed, *resumed]
    assert len(got) == len(expected) - stop
    assert all(torch.equal(a, b) for a, b in zip(got, expected[stop:]))


class Recorder(lightning.LightningModule):
    """Notes which images each step saw; learns one number from them, so that weights tell the order too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, images: Tensor, index: int) -> Tensor:
        self.seen.append(numbers(images))
        return (self.weight - images.mean() * torch.rand(())).square()

    def validation_step(self, images: Tensor, index: int) -> None:
        pass

    def on_train_end(self) -> None:
        if self.trainer.world_size > 1:
            (Path(self.trainer.default_root_dir) / f"seen_{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(place: str, out: Path, steps: int, resume: Path | None = None, **settings: Any) -> Recorder:
    every = settings.pop("save_every", None)
    validate = settings.pop("validate", False)
    workers, processes = settings.pop("workers", 0), settings.pop("processes", 1)
    module = Recorder()
    data = ImageData(
        place, val=place if validate else None, size=SIZE, batch_size=4, shuffle_buffer=6, workers=workers, **settings
    )
    checkpoint = lightning.callbacks.ModelCheckpoint(
        out,
        filename="{step}",
        save_top_k=-1,
        every_n_train_steps=every,
        save_on_train_epoch_end=None if every else True,
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        default_root_dir=out,
        callbacks=[checkpoint],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module


@pytest.mark.parametrize(
    ("source", "settings", "validate"),
    [
        ("folder", {}, False),
        ("folder", {}, True),
        ("shards", {}, False),
        ("shards", {}, True),
        ("shards", {"epoch_images": 24}, True),
    ],
)
def test_a_run_goes_on_with_the_image_that_came_next(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, settings: dict[str, Any], validate: bool
) -> None:
    """From the middle of an epoch, its last batch (5 or 6), and the first of the next one; to the third epoch."""
    place = str(request.getfixturevalue(source))
    whole = train(place, tmp_path / "whole", 14, save_every=1, validate=validate, **settings)
    for step in (2, 5, 6, 7):
        resumed = train(
            place, tmp_path / f"{step}", 14, tmp_path / "whole" / f"step={step}.ckpt", validate=validate, **settings
        )
        assert resumed.seen == whole.seen[step:], f"resumed at step {step}"


@pytest.mark.parametrize("source", ["folder", "shards"])
@pytest.mark.parametrize("validate", [False, True])
def test_a_checkpoint_at_the_end_of_an_epoch_leads_to_the_next(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, validate: bool
) -> None:
    place = str(request.getfixturevalue(source))
    whole = train(place, tmp_path / "whole", 14, validate=validate)
    for step in sorted(int(path.stem.removeprefix("step=")) for path in (tmp_path / "whole").iterdir())[:2]:
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = train(place, tmp_path / f"{step}", 14, checkpoint, validate=validate)
        assert resumed.seen == whole.seen[step:], f"resumed at step {step}"


def test_a_run_goes_on_with_workers(shards: Path, tmp_path: Path) -> None:
    whole = train(str(shards), tmp_path / "whole", 9, save_every=1, workers=2)
    resumed = train(str(shards), tmp_path / "resumed", 9, tmp_path / "whole" / "step=3.ckpt", workers=2)
    assert resumed.seen == whole.seen[3:]


@pytest.mark.parametrize(("source", "settings"), [("folder", {}), ("shards", {"epoch_images": 23})])
def test_two_processes_see_different_images_and_go_on_where_they_stopped(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, settings: dict[str, Any]
) -> None:
    place = str(request.getfixturevalue(source))

    def seen(out: Path) -> list[list[list[int]]]:
        return [json.loads((out / f"seen_{rank}.json").read_text()) for rank in range(2)]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(place, whole, 5, save_every=1, processes=2, **settings)
    first = [number for rank in seen(whole) for batch in rank[:2] for number in batch]  # an epoch is two batches
    assert len(first) == len(set(first)) == 16
    train(place, resumed, 5, whole / "step=3.ckpt", processes=2, **settings)
    assert seen(resumed) == [rank[3:] for rank in seen(whole)]


def test_another_order_starts_the_epoch_anew_and_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(str(folder), tmp_path / "whole", 2, save_every=1)
    with caplog.at_level(logging.WARNING, "zoo"):
        train(str(folder), tmp_path / "resumed", 4, tmp_path / "whole" / "step=2.ckpt", seed=1)
    assert "seed 0 -> 1" in caplog.text


# -- what cannot be read -------------------------------------------------------------------------------------------


def test_what_is_no_image_in_a_folder_is_named_and_skipped(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        (tmp_path / f"good_{number}.png").write_bytes(encoded(number))
    (tmp_path / "broken.png").write_bytes(encoded(2)[:300])
    (tmp_path / "notes.txt").write_text("no image")
    data = ImageData(str(tmp_path), val=str(tmp_path), size=SIZE, batch_size=3)
    (batch,) = data.train_dataloader()
    assert len(batch) == 3  # another image in its place
    (batch,) = data.val_dataloader()
    assert sorted(numbers(batch)) == [0, 1]  # none counts twice
    assert {Path(name).name for name in data.skipped} == {"broken.png", "notes.txt"}
    assert "broken.png" in caplog.text
    assert "notes.txt" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_and_shards_are_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    good = {f"{number}.png": encoded(number) for number in range(5)}
    shard(tmp_path / "a.tar", {**good, "broken.jpg": b"\xff\xd8\xff\xe0 no more", "text.txt": b"alone"})
    shard(tmp_path / "b.tar", {})
    (tmp_path / "c.tar").write_bytes(b"")
    whole = shard(tmp_path / "d.tar", {f"{n}.png": encoded(n) for n in range(5, 9)}).read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "e.tar").write_bytes(b"this is no tar file" * 100)
    data = ImageData(str(tmp_path), val=str(tmp_path), size=SIZE, batch_size=2, workers=workers)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        seen = [number for batch in loader for number in numbers(batch)]
        assert sorted(seen)[:5] == [0, 1, 2, 3, 4]
        assert set(seen) <= set(range(8))
        assert len(set(seen)) == len(seen)
    named = {Path(name).name for name in data.skipped}
    assert named == {"a.tar::broken.jpg", "a.tar::text", "b.tar", "c.tar", "d.tar", "e.tar"}
    assert "empty" in data.skipped[str(tmp_path / "b.tar")]
    assert "breaks off after" in data.skipped[str(tmp_path / "d.tar")]
    assert all(name in caplog.text for name in data.skipped)
    assert "6 files skipped" in caplog.text


@pytest.mark.parametrize("epoch_images", [None, 8])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_source_without_a_readable_image_is_an_error(
    tmp_path: Path, kind: str, workers: int, epoch_images: int | None
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    if kind == "shards":
        shard(tmp_path / "a.tar", {"broken.png": b"no image"})
        (tmp_path / "broken.png").unlink()
    data = ImageData(str(tmp_path), val=str(tmp_path), size=SIZE, workers=workers, epoch_images=epoch_images)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(MediaError, match=r"broken\.png"):
            next(iter(loader))


def test_parquet_with_plain_bytes_nulls_and_paths(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "3.png").write_bytes(encoded(3))
    structs = [
        {"bytes": encoded(1), "path": "1.png"},
        None,
        {"bytes": None, "path": "3.png"},
        {"bytes": None, "path": "x"},
    ]
    parquet.write_table(pa.table({"picture": structs}), tmp_path / "structs.parquet")
    parquet.write_table(pa.table({"picture": [encoded(4), None], "mask": [b"", b""]}), tmp_path / "bytes.parquet")
    items = list(open_source(str(tmp_path / "structs.parquet")).records())
    assert [type(item) for item in items] == [Record, Skipped, Record, Skipped]
    assert [item.data for item in items if isinstance(item, Record)] == [encoded(1), encoded(3)]
    with pytest.raises(MediaError, match="mask"):
        list(open_source(str(tmp_path / "bytes.parquet")).records())
    first, second = open_source(str(tmp_path / "bytes.parquet"), column="picture").records()
    assert isinstance(first, Record)
    assert isinstance(second, Skipped)
    with pytest.raises(MediaError, match="thumbnail"):
        list(open_source(str(tmp_path / "bytes.parquet"), column="thumbnail").records())


def test_a_remote_shard(tmp_path: Path) -> None:
    """Any command or url whose output is a tar file; one that fails is named."""
    shard(tmp_path / "a.tar", {"1.jpg": encoded(1)})
    (record,) = open_source(f"pipe:cat {tmp_path / 'a.tar'}").records()
    assert isinstance(record, Record)
    (failed,) = open_source("pipe:false").records()
    assert isinstance(failed, Skipped)
    assert failed.name == "pipe:false"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("no/such/folder", "no images at no/such/folder"),
        ("no/such/{0..3}.tar", "no file no/such/0.tar"),
        ("no/*.parquet", "no file no"),
        ("hf:name?spilt=train", "spilt"),
        ("hf:name?streaming=maybe", "maybe"),
    ],
)
def test_a_wrong_place_is_told_when_the_module_is_made(place: str, told: str) -> None:
    with pytest.raises(MediaError, match=told.replace("?", r"\?")):
        ImageData(place)


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0}, {"size": 0}, {"scale": (0.0, 1.0)}, {"epoch_images": 0}, {"shuffle_buffer": 0},
        {"crop": (0.0, 1.0)}, {"crop": (0.9, 1.1)}, {"crop": (0.9, 1.0), "scale": (0.5, 1.0)},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told(folder: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ImageData(str(folder), **setting)


def test_a_transform_of_torchvision_takes_the_place_of_the_augmentation(folder: Path) -> None:
    data = ImageData(str(folder), size=SIZE, batch_size=5, transform=v2.RandomResizedCrop(SIZE))
    first, second = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first, second)
    wrong = ImageData(str(folder), size=SIZE, transform=v2.CenterCrop(8))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\)"):
        next(iter(wrong.train_dataloader()))


@given(height=st.integers(5, 60), width=st.integers(5, 60), size=st.integers(4, 30), low=st.floats(0.1, 2))
def test_the_random_crop_has_its_size_and_stays_in_the_image(height: int, width: int, size: int, low: float) -> None:
    image = torch.arange(height * width, dtype=torch.float32).expand(3, -1).reshape(3, height, width) / height / width
    crop = RandomScaleCrop(size, (low, low * 1.5))(image)
    assert crop.shape == (3, size, size)
    assert crop.mean() == pytest.approx(float(crop[0].mean()))
    assert -0.3 < crop.min() <= crop.max() < 1.3  # bicubic overshoots


def test_scale_one_cuts_without_resizing() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    crop = RandomScaleCrop(16)(image)
    windows = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    assert (windows == crop).flatten(1).all(1).any()


def test_a_crop_is_a_share_of_the_short_side() -> None:
    ramp = torch.linspace(0, 1, 100).expand(3, 200, -1)  # over the short side
    sides = []
    for _ in range(100):
        cut = RandomScaleCrop(100, crop=(0.5, 0.8))(ramp)
        sides.append(float(cut[0, 0, -1] - cut[0, 0, 0]))
        assert -0.01 < cut.min() <= cut.max() < 1.01
    assert 0.48 < min(sides) < 0.55 < 0.75 < max(sides) < 0.82
    torch.testing.assert_close(RandomScaleCrop(100, crop=(1.0, 1.0))(ramp), ramp[:, :100])


def test_half_of_the_images_are_flipped_or_none() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, :, 0] = 1
    flipped = [bool(augmentation(8)(image)[0, 0, 7]) for _ in range(200)]
    assert 70 < sum(flipped) < 130
    assert not any(augmentation(8, flip=False)(image)[0, 0, 7] for _ in range(20))


def test_the_state_is_plain(folder: Path, tmp_path: Path) -> None:
    train(str(folder), tmp_path, 2, save_every=1)
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["ImageData"]
    assert json.loads(json.dumps(state))["positions"][0]["batches"] == 2


# -- decoded once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing_but_the_time(folder: Path, workers: int) -> None:
    def epochs(cache: bool) -> list[Tensor]:
        settings: dict[str, Any] = {"size": SIZE, "batch_size": 4, "scale": (0.5, 1.0), "workers": workers}
        data = ImageData(str(folder), val=str(folder), cache=cache, **settings)
        training = data.train_dataloader()
        return [torch.cat(list(loader)) for loader in (training, training, data.val_dataloader())]

    assert all(torch.equal(*pair) for pair in zip(epochs(False), epochs(True)))


def test_a_cache_reads_no_file_twice(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    data = ImageData(str(tmp_path), size=SIZE, batch_size=2, cache=True)
    loader = data.train_dataloader()
    for file in tmp_path.iterdir():
        file.unlink()
    assert sorted(number for batch in loader for number in numbers(batch)) == list(range(4))


def test_a_cache_of_shards_is_read_in_any_order(shards: Path) -> None:
    data = ImageData(str(shards), size=SIZE, batch_size=4, cache=True)
    loader = data.train_dataloader()
    assert len(loader) == 5
    seen = [number for batch in loader for number in numbers(batch)]
    assert len(set(seen)) == 20
    assert any(name.endswith("02.tar") for name in data.skipped)  # the empty shard


def test_what_a_cache_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded(1))
    (tmp_path / "broken.png").write_bytes(encoded(2)[:40])
    (tmp_path / "notes.txt").write_text("text")
    data = ImageData(str(tmp_path), size=SIZE, batch_size=1, cache=True)
    assert [numbers(batch) for batch in data.train_dataloader()] == [[1]]
    assert {Path(name).name for name in data.skipped} == {"broken.png", "notes.txt"}
    (tmp_path / "good.png").unlink()
    with pytest.raises(MediaError, match="no image of 2 can be read"):
        ImageData(str(tmp_path), size=SIZE, cache=True).train_dataloader()


# -- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def paired(tmp_path: Path) -> tuple[Path, Path]:
    """Six images of a generator in two folders, and the real ones: ten grey levels lighter, larger, other files."""
    for number in range(6):
        for name, offset, side, suffix in (("generated", 0, SIZE, ".png"), ("real", 10, 2 * SIZE, ".webp")):
            path = tmp_path / name / str(number % 2) / f"{number}.v{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (20 * number + offset,) * 3).save(path, lossless=True)
    return tmp_path / "generated", tmp_path / "real"


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_each_image_comes_with_its_target(paired: tuple[Path, Path], workers: int, cache: bool) -> None:
    generated, real = paired
    data = ImageData(
        str(generated), val=str(real), targets=str(real), size=SIZE, batch_size=4, workers=workers, cache=cache
    )
    seen = []
    for batch in data.train_dataloader():
        assert isinstance(batch, ImagePairs)
        assert batch.images.shape == batch.targets.shape == (4, 3, SIZE, SIZE)
        torch.testing.assert_close(batch.targets, batch.images + 10 / 255)
        seen += (batch.images[:, 0, 0, 0] * 255 / 20).round().int().tolist()
    assert len(set(seen)) == 4
    (loader,) = [data.val_dataloader()]
    assert all(isinstance(batch, Tensor) for batch in loader)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda real: (real / "1" / "3.v.webp").unlink(),
            "expected one image of the same name .* got none for .*3.v.png",
        ),
        (lambda real: (real / "1" / "3.v.jpg").write_bytes(encoded(0)), r"got .*3.v.jpg and .*3.v.webp for .*3.v.png"),
    ],
)
def test_a_missing_target_is_told_when_the_module_is_made(
    paired: tuple[Path, Path], change: Callable[[Path], object], told: str
) -> None:
    generated, real = paired
    change(real)
    with pytest.raises(ValueError, match=told):
        ImageData(str(generated), targets=str(real))


def test_a_target_that_cannot_be_read_is_named_and_its_pair_skipped(
    paired: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    generated, real = paired
    (real / "1" / "3.v.webp").write_bytes(b"no image")
    data = ImageData(str(generated), targets=str(real), size=SIZE, batch_size=6)
    with caplog.at_level(logging.WARNING, "zoo"):
        (batch,) = data.train_dataloader()
    assert (batch.images[:, 0, 0, 0] * 255).round().int().tolist().count(60) == 0
    assert "3.v" in caplog.text


@pytest.mark.parametrize(
    "setting",
    [{"crop": (0.9, 1.0)}, {"scale": (0.5, 1.0)}, {"transform": v2.Identity()}, {"captions": "txt"}],
)
def test_targets_go_with_no_augmentation(folder: Path, shards: Path, setting: dict[str, Any]) -> None:
    place = str(shards) if "captions" in setting else str(folder)
    with pytest.raises(ValueError, match="targets: expected neither scale, crop, transform nor captions"):
        ImageData(place, targets=str(folder), **setting)
    with pytest.raises(ValueError, match="targets: expected them beside a folder of images"):
        ImageData(str(shards), targets=str(folder))
