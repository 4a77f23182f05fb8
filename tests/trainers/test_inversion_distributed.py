"""Two processes give a contrastive loss and its gradients as one does with the joined batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from ranks import run_ranks
from tiny_open_clip import save_tiny_clip

from trainers.data.features import ImageFeatures
from trainers.data.rows import CaptionedImages
from trainers.tasks import DictionaryTask, ISATask, Pic2WordTask

TEXTS = ("a dog", "a cat", "two cars", "the house", "a red hat", "snow", "old trees", "a boat")


def task_and_batch(name: str, clip: str, part: slice) -> tuple[Any, Any]:
    """A task, and some of the eight items that it learns from."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 32, 32, generator=generator)[part]
    if name == "pic2word":
        task: Any = Pic2WordTask("pic2word_vit_l14", changes={"hidden_dim": 8, "dropout": 0.0}, clip=clip)
        return task, ImageFeatures(torch.randn(8, 24, generator=generator)[part])
    if name == "isa":
        changes = {"encoder": "mobilenetv3_small_050", "image_dim": 288, "words": 2, "hidden_dim": 8}
        return ISATask("isa", clip=clip, changes=changes, encoder_weights="random").eval(), images
    sizes = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "heads": 2, "joint_dim": 8, "text_dim": 16}
    changes = {**sizes, "codebook_size": 32, "dim": 8, "temperature": 1.0}
    return DictionaryTask(changes=changes, text_layers=1, text_heads=2), CaptionedImages(images, TEXTS[part])


def gradients(name: str, clip: str, part: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
    task, batch = task_and_batch(name, clip, part)
    loss = task.losses(batch)["total"]
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in task.parameters() if parameter.requires_grad]


def work(rank: int, name: str, clip: str, out: str) -> None:
    loss, found = gradients(name, clip, slice(rank * 4, rank * 4 + 4))
    torch.distributed.all_reduce(loss)
    loss /= 2
    for gradient in found:  # as DistributedDataParallel does
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    if rank == 0:
        torch.save((loss, found), out)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("name", ["pic2word", "isa", "dictionary"])
def test_the_images_of_all_processes_are_compared(name: str, tmp_path: Path) -> None:
    clip = save_tiny_clip(tmp_path / "clip")
    run_ranks(work, name, clip, str(tmp_path / "out.pt"))
    loss, expected = gradients(name, clip, slice(0, 8))
    joined, found = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(joined, loss)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    half, _ = gradients(name, clip, slice(0, 4))
    assert abs(half - loss) > 1e-3
