"""EnCodec's files: tokens come back, in the bytes that the format states; what is no such file is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codecs import MODELS, signal

from audio.ecdc import from_ecdc, read_header, to_ecdc
from audio.encodec_entropy import CodeModel, CodeModelConfig, window_of

torch.manual_seed(0)
CODE_MODEL = CodeModel(CodeModelConfig(num_codebooks=4, codebook_size=64, dim=16, layers=2, heads=4, window=5)).eval()


@pytest.mark.parametrize("fixture", ["encodec", "encodec__48khz"])
@settings(max_examples=12, deadline=None)
@given(samples=st.integers(1, 1300), count=st.integers(1, 4), entropy=st.booleans())
def test_tokens_come_back(fixture: str, samples: int, count: int, entropy: bool) -> None:
    model, code_model = MODELS[fixture], CODE_MODEL if entropy else None
    tokens = model.encode(signal(model, samples), num_codebooks=count)
    data = to_ecdc(model, tokens, code_model)
    again = from_ecdc(model, data, code_model)
    assert again == tokens
    torch.testing.assert_close(model.decode(again), model.decode(tokens))
    if not entropy:
        _, start = read_header(data)
        gains = 0 if tokens.extent.gains is None else len(tokens.extent.gains[0])  # type: ignore[union-attr]
        per_segment = [-(-frames * count * 6 // 8) for frames in model.config.frames(samples)]
        assert len(data) == start + sum(per_segment) + 4 * gains


def test_files_that_do_not_fit_are_refused() -> None:
    model = MODELS["encodec"]
    tokens = model.encode(signal(model, 400))
    data = to_ecdc(model, tokens)
    entropy_coded = to_ecdc(model, tokens, CODE_MODEL)
    for bad, message in [
        (b"", "expected an .ecdc file"),
        (b"RIFF" + data[4:], "expected an .ecdc file"),
        (data[:4] + b"\1" + data[5:], "of version 0, got 1"),
        (data[:20], "expected the header"),
        (data[:-1], "expected 30 bytes for 40 values, got 29"),
        (data + b"\0", "expected the end of the file, got 1 more"),
        (data.replace(b"encodec_3khz", b"encodec_9khz"), "expected a file of encodec_3khz, got one of encodec_9khz"),
        (data.replace(b'"nc": 4', b'"nc": 0'), "expected the header"),
        (entropy_coded, "expected the language model"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_ecdc(model, bad)
    with pytest.raises(ValueError, match=r"expected more arithmetic code|expected arithmetic code"):
        from_ecdc(model, entropy_coded[:-9], CODE_MODEL)
    with pytest.raises(ValueError, match="the tokens of one recording"):
        to_ecdc(model, model.encode(signal(model, 400, items=2)))


def test_the_language_model_looks_back_and_never_ahead() -> None:
    indices = torch.randint(64, (2, 3, 12))
    with torch.no_grad():
        probabilities = CODE_MODEL(indices)
        changed = indices.clone()
        changed[:, :, 6] = (changed[:, :, 6] + 1) % 64
        others = CODE_MODEL(changed)
    assert probabilities.shape == (2, 64, 3, 12)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 3, 12))
    assert torch.equal(others[..., :7], probabilities[..., :7])
    assert not torch.equal(others[..., 7], probabilities[..., 7])
    torch.testing.assert_close(CODE_MODEL(indices[1:]), probabilities[1:])


def test_the_published_windows() -> None:
    assert (window_of(75), window_of(150)) == (262, 525)
    with pytest.raises(ValueError, match="expected 1 to 4 codebooks, got 5"):
        CODE_MODEL(torch.zeros(1, 5, 2, dtype=torch.int64))
