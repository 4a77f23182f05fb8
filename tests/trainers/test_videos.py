"""Videos for training: which files are one, what of them is read, and that losses of tokenizers of videos fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from PIL import Image
from test_resume_tasks import COSMOS, ELASTIC
from tiny_task import trainer

from trainers.data import VideoData
from trainers.tasks import ReconstructionTask
from zoo.media import MediaError
from zoo.media.video import ClipSource

LEVEL = 20  # by which each frame is brighter than the one before


def frame(place: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    return Image.fromarray(np.full((*size, 3), LEVEL * place, dtype=np.uint8))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A GIF of five frames and one of two, a WebP of three, and a folder of twelve frames; and a text."""
    for name, count in (("long.gif", 5), ("short.gif", 2), ("sub/other.webp", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        first, *rest = [frame(place) for place in range(count)]
        first.save(tmp_path / name, save_all=True, append_images=rest, lossless=True)
    (tmp_path / "clip").mkdir()
    for place in range(12):
        frame(place).save(tmp_path / "clip" / f"frame_{place}.png")
    (tmp_path / "clip" / "note.txt").write_text("no frame")
    return tmp_path


def test_animations_and_folders_of_frames_are_clips_in_the_order_of_numbers(videos: Path) -> None:
    source = ClipSource(str(videos))
    assert [Path(clip.name).name for clip in source.clips] == ["clip", "long.gif", "short.gif", "other.webp"]
    counts: list[int] = []
    for clip in source.clips:
        pixels = clip.read(lambda count: (counts.append(count), range(count))[1])
        assert pixels.dtype == np.uint8
        assert (pixels[:, 0, 0, 0] / LEVEL).round().tolist() == list(range(len(pixels)))
    assert counts == [12, 5, 2, 3]


def test_validation_takes_the_middle_and_short_clips_stand_still(videos: Path) -> None:
    data = VideoData(str(videos), str(videos), frames=3, step=2, size=16, batch_size=1)
    found = [(255 / LEVEL * clip[0].mean((0, 2, 3))).round().int().tolist() for clip in data.val_dataloader()]
    assert found == [[3, 5, 7], [0, 2, 4], [0, 1, 1], [0, 2, 2]]
    batch = next(iter(data.val_dataloader()))
    assert batch.shape == (1, 3, 3, 16, 16)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


def test_training_takes_random_clips_cut_alike_in_all_frames(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    for place in range(9):
        Image.fromarray(noise).save(tmp_path / "clip" / f"{place}.png")
    data = VideoData(str(tmp_path), frames=4, size=16, batch_size=1, scale=(0.5, 1.0), seed=1)
    loader = data.train_dataloader()
    epochs = [next(iter(loader)) for _ in range(4)]
    for clip in epochs:
        assert clip.shape == (1, 3, 4, 16, 16)
        assert torch.equal(clip[:, :, :1].expand_as(clip), clip)  # a still video stays one
    assert not torch.equal(epochs[0], epochs[1])
    again = VideoData(str(tmp_path), frames=4, size=16, batch_size=1, scale=(0.5, 1.0), seed=1)
    assert torch.equal(next(iter(again.train_dataloader())), epochs[0])


def test_every_place_of_a_video_is_drawn(videos: Path) -> None:
    data = VideoData(str(videos / "clip"), frames=2, step=3, size=16, batch_size=1)
    loader = data.train_dataloader()
    pairs = {tuple((255 / LEVEL * next(iter(loader))[0].mean((0, 2, 3))).round().int().tolist()) for _ in range(80)}
    assert pairs == {(start, start + 3) for start in range(9)}


def test_what_cannot_be_read_is_told(videos: Path) -> None:
    (videos / "broken.gif").write_bytes((videos / "long.gif").read_bytes()[:60])
    frame(1, (10, 10)).save(videos / "clip" / "frame_5.png")
    data = VideoData(str(videos), str(videos), frames=12, size=16, batch_size=1)
    assert len(list(data.val_dataloader())) == 3
    reasons = {Path(name).name: reason for name, reason in data.skipped.items()}
    assert set(reasons) == {"broken.gif", "clip"}
    assert "expected frames of one size, got [(10, 10), (40, 48)]" in reasons["clip"]
    with pytest.raises(MediaError, match="expected a folder of videos, got"):
        VideoData(str(videos / "none"))
    with pytest.raises(ValueError, match="step: expected at least 1, got 0"):
        VideoData(str(videos), step=0)


class Losses(lightning.Callback):
    """The pixel loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reconstruction"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes", "frames"), [("cosmos_dv4x8x8", COSMOS, 5), ("elastictok_200m", ELASTIC, 2)]
)
def test_100_steps_lower_the_loss(model: str, changes: dict[str, Any], frames: int, videos: Path) -> None:
    torch.manual_seed(0)
    losses = Losses()
    data = VideoData(str(videos), frames=frames, size=32, batch_size=4)
    task = ReconstructionTask(model, changes, learning_rate=3e-3)
    trainer(max_steps=100, max_epochs=-1, callbacks=[losses]).fit(task, data)
    assert sum(losses.values[-20:]) < 0.5 * sum(losses.values[:20])


def test_losses_and_metrics_see_videos_frame_by_frame(videos: Path) -> None:
    torch.manual_seed(0)
    adversary = {"discriminator": {"kind": "patchgan", "hidden_channels": 4, "num_layers": 1}, "discriminator_start": 0}
    task = ReconstructionTask("elastictok_200m", ELASTIC, adversary=adversary)
    data = VideoData(str(videos), str(videos), frames=2, size=32, batch_size=4)
    run = trainer(max_steps=1)
    run.fit(task, data)
    assert 0 < float(run.callback_metrics["val/psnr"]) < 60
    clips = next(iter(data.val_dataloader()))
    pictures = task.pictures(task.model_range(clips))
    assert pictures.shape == (4, 3, 32, 64)
    torch.testing.assert_close(pictures[..., 32:], clips[:, :, 1])
    found = task.loss.generator_loss(clips, clips + 0.5, torch.zeros(()), step=0)
    assert float(found.values["reconstruction"]) == pytest.approx(0.5)
