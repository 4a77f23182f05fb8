"""Programs that stand alone: torch.export archives and ONNX files, run in a process without the zoo."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import zoo
from zoo.interop.export import ExportError, export
from zoo.interop.export import _nearest_code as plain_search
from zoo.ops.nearest_code import METRICS, nearest_code

_WITHOUT_ZOO = """
import sys, numpy, torch
sys.modules["zoo"] = None
folder, form = sys.argv[1:]
x = torch.from_numpy(numpy.load(f"{folder}/x.npy"))
if form == "onnx":
    import onnxruntime
    encode, decode = (onnxruntime.InferenceSession(f"{folder}/{part}.onnx") for part in ("encode", "decode"))
    levels = encode.run(None, {encode.get_inputs()[0].name: x.numpy()})
    (image,) = decode.run(None, {entry.name: level for entry, level in zip(decode.get_inputs(), levels)})
else:
    encode, decode = (torch.export.load(f"{folder}/{part}.pt2").module() for part in ("encode", "decode"))
    levels = encode(x)
    image = decode(*levels).detach().numpy()
    levels = [level.numpy() for level in levels]
numpy.savez(f"{folder}/found.npz", image=image, *levels)
"""


@pytest.mark.parametrize("form", ["torch-export", "onnx"])
def test_a_program_needs_nothing_of_the_zoo(tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = zoo.create_model("compact_f8.photos", pretrained=True)
    done = export(model, tmp_path, form, size=(64, 64))
    assert [(program.part, program.free) for program in done] == [
        ("encode", ("batch", "height", "width")),
        ("decode", ("batch", "height", "width")),
    ]
    x = torch.rand(3, 3, 48, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1  # another size than the traced one
    np.save(tmp_path / "x.npy", x.numpy())
    subprocess.run([sys.executable, "-c", _WITHOUT_ZOO, str(tmp_path), form], check=True)
    found = np.load(tmp_path / "found.npz")
    tokens = model.encode(x)
    assert (found["arr_0"] == tokens.levels[0].numpy()).mean() > 0.999
    image = model.decode(tokens).numpy()
    same = (found["arr_0"] == tokens.levels[0].numpy()).all(axis=(1, 2))
    np.testing.assert_allclose(found["image"][same], image[same], atol=1e-4)


def test_what_depends_on_the_signal_is_refused(tmp_path):
    """A model that chooses how many tokens an image gets is no fixed program; nothing is left behind."""
    model = zoo.create_model("compact_f8.photos", pretrained=True)

    class Choosy(type(model)):
        def encode_levels(self, x, **options):
            levels, _ = super().encode_levels(x, **options)
            return tuple(level.flatten(1) for level in levels), torch.tensor([64] * len(x))

    model.__class__ = Choosy
    model.layout = "sequence"
    model.decode_codes = lambda codes, tokens, **options: codes
    with pytest.raises(ExportError, match="depends on the signal"):
        export(model, tmp_path, "torch-export", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metric", METRICS)
def test_the_plain_search_finds_the_same_codes(metric):
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(count, 5, generator=generator) for count in (400, 37))
    assert torch.equal(plain_search(x, codebook, metric), nearest_code(x, codebook, metric))


def test_bad_arguments(tmp_path):
    model = zoo.create_model("compact_f8.photos", pretrained=True)
    with pytest.raises(ValueError, match="form: expected one of torch-export, onnx, got 'tflite'"):
        export(model, tmp_path, "tflite")
