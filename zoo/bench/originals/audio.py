"""Originals of the audio families."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bench.originals.adapter import Adapter, Original, Setting

_FASTER = {"cpu": 1.8, "cuda": 2.0}


def _second(model: str, samples: int, **options: Any) -> tuple[Setting, ...]:
    """About a second of noise: as many samples as whole frames have, so that no side pads."""
    return (Setting(model, 1, (samples,), options),)


@torch.no_grad()
def _with_codes(module: nn.Module, fills: Mapping[str, float | None]) -> nn.Module:
    """The module in evaluation mode, its codebooks, which begin empty, filled.

    `fills`: ending of a buffer's name -> its value, or None for normal noise.
    """
    for name, buffer in module.named_buffers():
        for ending, value in fills.items():
            if name.endswith(ending):
                buffer.normal_() if value is None else buffer.fill_(value)
    return module.eval()


# -- EnCodec -------------------------------------------------------------------------------------------------------


def _encodec(model: str) -> Original:
    original = importlib.import_module("encodec.model").EncodecModel
    module = _with_codes(original.encodec_model_24khz(pretrained=False), {".embed": None, ".inited": 1.0})
    bits, frame_rate = module.bits_per_codebook, module.frame_rate

    def encode(audio: Tensor, num_codebooks: int) -> Tensor:
        module.set_target_bandwidth(num_codebooks * bits * frame_rate / 1000)
        ((codes, _),) = module.encode(audio)
        return codes

    return Original(module, encode, lambda indices: module.decode([(indices, None)]))


# -- Descript Audio Codec ------------------------------------------------------------------------------------------


def _dac(model: str) -> Original:
    module = importlib.import_module("dac.model.dac").DAC().eval()  # its defaults are those of the 44.1 kHz model

    def encode(audio: Tensor, num_codebooks: int) -> Tensor:
        return module.encode(audio, n_quantizers=num_codebooks)[1]

    return Original(module, encode, lambda indices: module.decode(module.quantizer.from_codes(indices)[0]))


# -- SNAC ----------------------------------------------------------------------------------------------------------


def _snac(model: str) -> Original:
    """Its noise, which is drawn anew in each call, is given no strength, so that results can be compared."""
    module = importlib.import_module("snac").SNAC(
        sampling_rate=24000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024, decoder_rates=[8, 8, 4, 2],
        attn_window_size=None, codebook_size=4096, codebook_dim=8, vq_strides=[4, 2, 1], noise=True, depthwise=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for part in module.modules():
            if type(part).__name__ == "NoiseBlock":
                for name, parameter in part.named_parameters():
                    if name.endswith(("weight_g", "original0")):  # the length of its weight
                        parameter.zero_()
    strides = module.vq_strides

    def decode(indices: Tensor) -> Tensor:
        positions = indices.shape[1] * strides[0] // sum(strides[0] // stride for stride in strides)
        return module.decode(list(indices.split([positions // stride for stride in strides], dim=1)))

    return Original(module, lambda audio: torch.cat(module.encode(audio), dim=1), decode)


# -- Mimi ----------------------------------------------------------------------------------------------------------


def _mimi(model: str) -> Original:
    module = importlib.import_module("moshi.models.loaders").get_mimi(None, num_codebooks=32)
    _with_codes(module, {".embedding_sum": None, ".cluster_usage": 1.0, "._initialized": 1.0})
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".layer_scale_" in name:  # which begin near 0
                parameter.fill_(0.3)

    def encode(audio: Tensor, num_codebooks: int) -> Tensor:
        module.set_num_codebooks(num_codebooks)
        return module.encode(audio)

    return Original(module, encode, module.decode)


ADAPTERS: dict[str, Adapter] = {
    "encodec": Adapter(
        "facebookresearch/encodec", "encodec.model", _second("encodec_24khz", 24_000, num_codebooks=8), _encodec,
        _FASTER,
    ),
    "dac": Adapter(
        "descriptinc/descript-audio-codec", "dac.model.dac", _second("dac_44khz", 44_032, num_codebooks=8), _dac,
        _FASTER,
    ),
    "snac": Adapter("hubertsiuzdak/snac", "snac", _second("snac_24khz", 24_576), _snac, _FASTER),
    "mimi": Adapter(
        "kyutai-labs/moshi", "moshi.models.loaders", _second("mimi_24khz", 23_040, num_codebooks=8), _mimi,
        {"cpu": 1.0, "cuda": 1.0},
    ),
}  # fmt: skip
