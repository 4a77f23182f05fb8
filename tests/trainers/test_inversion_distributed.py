"""Two processes give Pic2Word the loss and the gradients of one with the joined batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from tiny_open_clip import save_tiny_clip

from trainers.data.features import ImageFeatures
from trainers.tasks import Pic2WordTask


def gradients(clip: str, features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    task = Pic2WordTask("pic2word_vit_l14", changes={"hidden_dim": 8, "dropout": 0.0}, clip=clip)
    loss = task.losses(ImageFeatures(features))["total"]
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in task.model.parameters()]  # type: ignore[misc]


def work(rank: int, clip: str, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    features = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    loss, found = gradients(clip, features[rank * 4 : rank * 4 + 4])
    for gradient in found:  # as DistributedDataParallel does
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    if rank == 0:
        torch.save((loss, found), out)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_pic2word_compares_the_images_of_all_processes(tmp_path: Path) -> None:
    clip = save_tiny_clip(tmp_path / "clip")
    arguments = (clip, str(tmp_path / "meeting"), str(tmp_path / "out.pt"))
    torch.multiprocessing.spawn(work, args=arguments, nprocs=2)
    features = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    loss, expected = gradients(clip, features)
    joined, found = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(joined, loss)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    half, _ = gradients(clip, features[:4])
    assert abs(half - loss) > 1e-3
