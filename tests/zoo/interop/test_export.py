"""Programs that stand alone: torch.export archives and ONNX files, run in a process without the zoo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

import zoo
from zoo import cards
from zoo.interop.export import _irfft, _stft, export
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


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
@pytest.mark.parametrize("name", ["snac", "flextok", "selftok"])
def test_noise_is_an_input_of_a_decoder_that_draws_it(tmp_path, name, form):
    """The result is that of the model with the same noise, for another batch than the traced one."""
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = tiny.build(name)
    _, decode = export(model, tmp_path, form, size=tiny.size(model.spec))
    assert decode.inputs[-1] == "noise"
    assert decode.free[0] == "batch"
    tokens = model.encode(tiny.signal(model, 3))
    noise = torch.randn(model.noise_shape(model.codes(tokens)), generator=torch.Generator().manual_seed(7))
    given = dict(zip(decode.inputs, [*tokens.levels, noise], strict=True))
    if form == "onnx":
        session = onnxruntime.InferenceSession(decode.file)
        assert [entry.name for entry in session.get_inputs()] == list(decode.inputs)
        (found,) = session.run(["signal"], {key: value.numpy() for key, value in given.items()})
    else:
        found = torch.export.load(decode.file).module()(*given.values())
    expected = model.decode(tokens, noise=noise)
    torch.testing.assert_close(torch.as_tensor(found).detach(), expected, atol=1e-4, rtol=1e-4)
    other = model.decode(tokens, noise=noise + 1)
    assert not torch.allclose(other, expected, atol=1e-3)


def test_a_program_rounds_as_the_model_does(tmp_path):
    """Steps of 2^-15 tell where a program sums in another order than the model."""
    model = tiny.build("gaussian_token")
    encode, _ = export(model, tmp_path, "torch-export")
    images = tiny.signal(model, 8)
    found = torch.export.load(encode.file).module()(images)
    for level, expected in zip(found, model.encode(images).levels, strict=True):
        assert torch.equal(level, expected)


def test_a_codec_that_always_pads_gives_its_spare_frame(tmp_path):
    """BigCodec's whole frames get one more frame of zeros, in its programs too."""
    model = tiny.build("bigcodec")
    encode, decode = export(model, tmp_path, "torch-export", size=tiny.size(model.spec))
    audio = tiny.signal(model, 3)
    whole = torch.cat([audio, audio[..., : model.spec.multiple]], dim=-1)
    (level,) = torch.export.load(encode.file).module()(whole)
    assert level.shape == (3, 6)
    assert torch.equal(level, model.encode(whole).levels[0])
    sound = torch.export.load(decode.file).module()(level)
    torch.testing.assert_close(sound[..., : whole.shape[-1]], model.decode(model.encode(whole)))


def test_an_onnx_codec_of_spectra_gives_the_same_tokens(tmp_path):
    """Faint bins are raised by a power, and bands coded by how the network's sound misses them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny.build("spectral_codec")
    encode, _ = export(model, tmp_path, "onnx", size=tiny.size(model.spec))
    audio = 0.1 * tiny.signal(model, 3)
    found = onnxruntime.InferenceSession(encode.file).run(None, {"signal": audio.numpy()})
    for level, expected in zip(found, model.encode(audio).levels, strict=True):
        assert (level == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize("n_fft", [12, 15])
def test_the_transforms_of_programs_are_those_of_torch(n_fft):
    signal, window = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)), torch.hann_window(n_fft)
    spectrum = torch.stft(signal, n_fft, 4, window=window, center=False, return_complex=True)
    torch.testing.assert_close(_stft(signal, n_fft, 4, None, window, False, True, True), spectrum)
    torch.testing.assert_close(_irfft(spectrum, n_fft, 1), torch.fft.irfft(spectrum, n_fft, dim=1))


def test_noise_of_another_shape_is_refused():
    model = tiny.build("snac")
    tokens = model.encode(tiny.signal(model))
    shape = model.noise_shape(model.codes(tokens))
    with pytest.raises(ValueError, match="noise: expected"):
        model.decode(tokens, noise=torch.zeros(shape[0], shape[1] + 1))
    with pytest.raises(ValueError, match="decodes without noise"):
        tiny.build("bsq_vit").noise_shape(torch.zeros(1, 4, 3))


def test_what_depends_on_the_signal_is_told(tmp_path):
    """KARL chooses how many tokens an image gets, so that encoding is no fixed program; decoding is."""
    model = tiny.build("karl")
    encode, decode = export(model, tmp_path, "torch-export")
    assert encode.file is None
    assert "the number of its tokens depends on the signal" in encode.reason
    assert [path.name for path in tmp_path.iterdir()] == ["decode.pt2"]
    assert decode.free == ("batch",)


NO_FIXED_NUMBER = "the number of its tokens depends on the signal"
REASONS = {"karl": NO_FIXED_NUMBER, "elastictok": NO_FIXED_NUMBER}  # of encoders that are no program


@pytest.mark.slow
@pytest.mark.parametrize("name", [*tiny.FAMILIES])
def test_every_family_is_exported_or_says_why_not(tmp_path, name):
    model = tiny.build(name)
    for program in export(model, tmp_path, "torch-export", size=tiny.size(model.spec)):
        if program.part == "encode" and name in REASONS:
            assert REASONS[name] in program.reason
            assert all(REASONS[name] in card.notes for card in cards.all_cards() if card.family == name)
        else:
            assert program.file is not None, program.reason
            assert program.free[0] == "batch"
    again = zoo.create_model(str(zoo.save_model(model, tmp_path / "saved")))
    assert again.source == model.source


@pytest.mark.parametrize("metric", METRICS)
def test_the_plain_search_finds_the_same_codes(metric):
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(count, 5, generator=generator) for count in (400, 37))
    assert torch.equal(plain_search(x, codebook, metric), nearest_code(x, codebook, metric))


def test_bad_arguments(tmp_path):
    model = zoo.create_model("compact_f8.photos", pretrained=True)
    with pytest.raises(ValueError, match="form: expected one of torch-export, onnx, got 'tflite'"):
        export(model, tmp_path, "tflite")
