"""The loss of identity: a recogniser whose sizes its file tells, and what of a picture it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_recogniser import published_names, save_tiny_recogniser, tiny_recogniser

import zoo
from zoo.hub import NotFoundError
from zoo.losses.identity import KEY_MAP, FaceRecogniser, IdentityDistance, face_recogniser


def faces(count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_file_tells_the_sizes_of_the_recogniser(tmp_path: Path) -> None:
    known, loaded = tiny_recogniser(), face_recogniser(save_tiny_recogniser(tmp_path / "ir_se.pth"))
    assert not loaded.training
    assert torch.equal(loaded(faces(side=112)), known(faces(side=112)))
    torch.testing.assert_close(known(faces(side=112)).norm(dim=-1), torch.ones(2))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(zoo.CheckpointError, match="covered by no pattern"):
        face_recogniser(tmp_path / "other.pth")
    torch.save({"input_layer.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(zoo.CheckpointError, match=r"expected an IR-SE recogniser, got none of its 'units\.0"):
        face_recogniser(tmp_path / "part.pth")
    with pytest.raises(NotFoundError, match=r"absent\.pth"):
        face_recogniser(tmp_path / "absent.pth")


def test_the_published_recogniser_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = FaceRecogniser().state_dict()
    published = published_names(state)
    assert set(KEY_MAP(published)) == set(state)
    shapes = {name: tuple(value.shape) for name, value in published.items()}
    assert len(shapes) == 397
    assert sum(value.numel() for name, value in published.items() if not name.endswith("tracked")) == 43_824_064
    expected = {
        "input_layer.0.weight": (64, 3, 3, 3), "input_layer.2.weight": (64,),
        "body.0.res_layer.3.weight": (64, 64, 3, 3), "body.3.shortcut_layer.0.weight": (128, 64, 1, 1),
        "body.3.shortcut_layer.1.running_var": (128,), "body.23.res_layer.5.fc1.weight": (32, 512, 1, 1),
        "output_layer.3.weight": (512, 25088), "output_layer.4.running_mean": (512,),
    }  # fmt: skip
    assert {name: shapes[name] for name in expected} == expected
    assert "body.0.shortcut_layer.0.weight" not in shapes


def test_a_picture_lies_at_no_distance_from_itself_and_gradients_reach_the_first_alone() -> None:
    distance = IdentityDistance(tiny_recogniser())
    torch.testing.assert_close(distance(faces(), faces()), torch.zeros(2))
    images, targets = faces().requires_grad_(), faces().flip(0).requires_grad_()
    values = distance(images, targets)
    assert values.shape == (2,)
    assert (values > 0).all()
    values.sum().backward()
    assert images.grad.abs().sum() > 0
    assert targets.grad is None
    assert not distance.state_dict()
    assert not list(distance.parameters())


def test_the_face_is_what_counts() -> None:
    """Rows 35 to 223 and columns 32 to 220 of 256."""
    distance = IdentityDistance(tiny_recogniser())
    images = faces(1, 256)
    around, within = images.clone(), images.clone()
    around[:, :, :35], around[:, :, 223:], around[..., :32], around[..., 220:] = 1, 1, 1, 1
    within[:, :, 35, 32] = 1 - within[:, :, 35, 32]
    seen = distance.features(images)
    assert torch.equal(distance.features(around), seen)
    assert not torch.equal(distance.features(within), seen)
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(distance.features(doubled), seen)


def test_pictures_of_another_shape_are_refused() -> None:
    distance = IdentityDistance(tiny_recogniser())
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
        distance(faces()[:, :1], faces())
    with pytest.raises(ValueError, match="expected as many targets as images, got 1 for 2"):
        distance(faces(), faces(1))
