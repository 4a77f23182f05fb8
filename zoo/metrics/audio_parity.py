"""Checks of the audio metrics by a fixture of the reference packages, and of the token metrics by sequences."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.losses import spectral
from zoo.metrics import audio, stab
from zoo.metrics.loudness import loudness

_SEGMENT = 0.5  # seconds, of the framed SI-SDR


class AudioCase:
    """Of `audio_metrics`, one method per kind of check, as of `zoo.parity.Case`. Signals are (B, 1, T)."""

    def metrics(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        estimate, reference, rate = inputs["estimate"], inputs["reference"], settings["sample_rate"]
        frame = int(_SEGMENT * rate)
        per_item = {
            "stoi": audio.stoi,
            "estoi": lambda one, other, rate: audio.stoi(one, other, rate, extended=True),
            "pesq_wb": audio.pesq,
            "pesq_nb": lambda one, other, rate: audio.pesq(one, other, rate, "nb"),
            "si_sdr": lambda one, other, rate: audio.si_sdr(one, other, rate, zero_mean=False),
            "si_sdr_zero_mean": audio.si_sdr,
            "snr": audio.snr,
        }
        over_all = {
            "dac_mel_distance": audio.mel_distance,
            "dac_mel_distance_default": audio.mel_distance_default,
            "dac_stft_distance": audio.stft_distance,
            "dac_waveform_l1": audio.waveform_distance,
        }
        items = list(zip(estimate, reference))
        return {
            **{name: torch.tensor([metric(*item, rate) for item in items]) for name, metric in per_item.items()},
            **{name: torch.tensor([metric(*item, rate) for item in items]).mean() for name, metric in over_all.items()},
            "dac_sisdr_negated": -spectral.si_sdr(estimate.flatten(1), reference.flatten(1)),
            "audiocraft_sisnr_negated": -spectral.framed_si_sdr(estimate, reference, frame, frame // 2),
            "lufs_reference": loudness(reference, rate),
            "lufs_estimate": loudness(estimate, rate),
        }


class StabCase:
    """Of `stab`; sequences are rows, filled up with -1."""

    def token_statistics(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        size, frame_rate = settings["vocabulary_size"], settings["frame_rate"]
        found = stab.statistics(_rows(inputs["tokens"]), size)
        values = {
            "entropy_bits": found.entropy_bits,
            "perplexity": found.perplexity,
            "vocabulary_utilisation": found.utilisation,
            "normalised_entropy": found.normalised_entropy,
            "huffman_bits_per_token": found.huffman_bits,
            "huffman_efficiency": found.huffman_efficiency,
            "huffman_compression": found.huffman_compression,
            "dedup_ratio": found.dedup_ratio,
            "bits_per_second": frame_rate * math.log2(size),
            "entropy_bits_per_second": frame_rate * found.entropy_bits,
        }
        return {name: torch.tensor(value) for name, value in values.items()}

    def bpe(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        found = stab.pair_encoding(_rows(inputs["tokens"]), settings["vocabulary_size"], settings["merges"])
        rows = [torch.tensor(row, dtype=torch.int64) for row in found.sequences]
        return {
            "bpe_tokens": pad_sequence(rows, batch_first=True, padding_value=-1),
            "bpe_merges": torch.tensor(found.merges),
            "bpe_compression": torch.tensor(found.compression),
        }

    def invariance(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        found = stab.invariance(_rows(inputs["tokens"]), inputs["group"].tolist())
        return {
            "invariance_within": torch.tensor(found.within),
            "invariance_across": torch.tensor(found.across),
            "invariance_within_raw": torch.tensor(found.within_runs),
        }

    def robustness(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        found = stab.robustness(_rows(inputs["clean"]), _rows(inputs["perturbed"]))
        return {
            "robustness": torch.tensor(found.similarity),
            "unit_edit_distance": torch.tensor(found.edit_rate),
            "unit_edit_distance_raw": torch.tensor(found.edit_rate_runs),
            "edit_distances": torch.tensor(found.distances),
        }

    def context(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        full, isolated = _rows(inputs["full"]), _rows(inputs["isolated"])
        return {"context_agreement": torch.tensor(stab.context_agreement(full, isolated, inputs["start"].tolist()))}


def _rows(padded: Tensor) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in padded]
