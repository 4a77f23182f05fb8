"""`zoo.refine`: tokens nearer to the image than the encoder's."""

import pytest
import tiny
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

import zoo
from zoo.losses import RECONSTRUCTION_LOSSES
from zoo.losses.structural import StructuralDistance

PLAIN = {"l2": 4.0, "ms_ssim": 6.0}


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Two photos (2, 3, 96, 128) in [-1, 1]."""
    pixels = torch.stack([torch.from_numpy(photo[100:196, 200:328].copy()) for photo in load_sample_images().images])
    return pixels.movedim(-1, 1).float() / 127.5 - 1


def distance(model: zoo.Tokenizer, tokens: zoo.Tokens, images: Tensor) -> Tensor:
    decoded = model.decode(tokens)
    return 4 * RECONSTRUCTION_LOSSES["l2"](decoded, images) + 6 * StructuralDistance()(decoded, images)


@pytest.mark.parametrize("name", ["spectral_f16", "compact_f8"])
def test_every_photo_gets_better(name: str, photos: Tensor) -> None:
    model = zoo.create_model(name, pretrained=True)
    before = model.encode(photos)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    after = zoo.refine(model, photos, steps=6, distance=PLAIN)
    assert (distance(model, after, photos) < 0.99 * distance(model, before, photos)).all()
    assert after.bits == before.bits
    assert after.source == before.source
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    again = zoo.refine(model, photos, steps=6, distance=PLAIN)
    assert all(torch.equal(one, other) for one, other in zip(after.levels, again.levels))


def test_no_steps_are_the_tokens_of_encode(photos: Tensor) -> None:
    model = zoo.create_model("spectral_f16", pretrained=True)
    for num_tokens in (None, 5, [3, 48]):
        before = model.encode(photos, num_tokens=num_tokens)
        after = zoo.refine(model, photos, steps=0, distance=PLAIN, num_tokens=num_tokens)
        assert torch.equal(before.indices, after.indices)
        assert (before.lengths is None) == (after.lengths is None)


def test_prefixes_are_refined_as_prefixes(photos: Tensor) -> None:
    model = zoo.create_model("spectral_f16", pretrained=True)
    before = model.encode(photos, num_tokens=[4, 20])
    after = zoo.refine(model, photos, steps=6, distance=PLAIN, num_tokens=[4, 20])
    assert after.lengths is not None
    assert after.lengths.tolist() == [4, 20]
    assert (after.indices[0, 4:] == 0).all()
    assert (distance(model, after, photos) < distance(model, before, photos)).all()


REFUSED = {"alit", "flextok", "four_m_vector", "layton", "seed_tokenizer", "selftok", "semanticist", "taming_vqgan"}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_no_model_gets_worse_or_it_is_refused(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    if model.spec.modality != "image" or name in REFUSED:
        with pytest.raises(ValueError, match=f"{model.name}|{model.quantizer.config.kind}"):
            zoo.refine(model, x, steps=3, distance={"l2": 1.0}, rate=0.1)
        return
    after = zoo.refine(model, x, steps=3, distance={"l2": 1.0}, rate=0.1)
    errors = [(model.decode(tokens) - x).square().flatten(1).mean(1) for tokens in (model.encode(x), after)]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()


def test_settings_out_of_range_are_refused(photos: Tensor) -> None:
    model = zoo.create_model("compact_f8", pretrained=True)
    for settings, named in (
        ({"steps": -1}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"rate": 0.0}, "rate"),
        ({"distance": {}}, "distance"),
        ({"distance": {"no_such": 1.0}}, "no_such"),
    ):
        with pytest.raises(ValueError, match=named):
            zoo.refine(model, photos, **settings)
    with pytest.raises(ValueError, match="images"):
        zoo.refine(zoo.create_model("spectral_codec_16khz", pretrained=True), torch.zeros(1, 1, 16000))
