"""Encoding and decoding with audio codecs at their published sizes, against transformers with the same weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zoo
from zoo.bench import exact
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

TRANSFORMERS = "transformers"
_PARTING = 0.01  # the share of frames that may part ways: after a near tie at one level, all further ones differ
_TOLERANCE = 1e-4
# our name -> the class there, and the fields of its config in which the published model differs from the defaults
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "encodec_24khz.transformers": ("Encodec", {}),
    "dac_44khz.transformers": ("Dac", {"sampling_rate": 44100}),
    "mimi_24khz.transformers": ("Mimi", {}),
}


class Data(NamedTuple):
    ours: Tokenizer
    theirs: nn.Module
    audio: Tensor  # (B, 1, T)
    tokens: Tokens


@dataclass(frozen=True)
class _Codec(Problem[Data]):
    """Noise of so many seconds; weights are random, those of both sides the same."""

    model: str
    batch: int
    seconds: float
    codebooks: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.model.partition('.')[0]}, {self.batch} x {self.seconds:g} s, {self.codebooks} codebooks"

    def data(self) -> Data:
        theirs = _theirs(self.model)
        with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
            theirs.save_pretrained(folder)  # type: ignore[operator]
            ours = zoo.create_model(self.model, checkpoint=folder, device=self.device)
        generator = torch.Generator().manual_seed(0)
        samples = int(self.seconds * ours.spec.sample_rate)
        hop = getattr(theirs.config, "hop_length", None) or int(ours.spec.sample_rate / theirs.config.frame_rate)
        samples -= samples % hop
        audio = (torch.rand(self.batch, 1, samples, generator=generator) - 0.5).to(self.device)
        return Data(ours, theirs.to(self.device), audio, ours.encode(audio, num_codebooks=self.codebooks))

    def contenders(self) -> Sequence[Contender[Data]]:
        return Contender(ZOO, self._our_action), Contender(TRANSFORMERS, self._their_action, "transformers")

    def items(self) -> tuple[float, str]:
        return self.batch * self.seconds, "s of audio"

    def _our_action(self, data: Data) -> Callable[[], Tensor]:
        raise NotImplementedError

    def _their_action(self, data: Data) -> Callable[[], Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class EncodeAudio(_Codec):
    """Samples to indices."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Frames have transformers' indices, but for those few that part ways at a near tie."""
        expected = outputs[TRANSFORMERS]
        verdicts = {}
        for name, indices in outputs.items():
            if indices.shape != expected.shape:
                text = f"wrong: indices of shape {tuple(indices.shape)}, not {tuple(expected.shape)}"
                verdicts[name] = Verdict(False, text)
                continue
            parted, count = int((indices != expected).any(dim=1).sum()), expected[:, 0].numel()
            few = parted <= _PARTING * count
            text = f"all {count:,} frames equal" if parted == 0 else f"{parted:,} of {count:,} frames part ways"
            verdicts[name] = Verdict(few, text if few else f"wrong: {text}")
        return verdicts

    def work(self) -> Work:
        return Work(_flops(self.model, self.batch, self.seconds, "encode"))

    def goals(self) -> Sequence[Goal]:
        return (Goal(ZOO, "time", TRANSFORMERS, 1.5),)

    def _our_action(self, data: Data) -> Callable[[], Tensor]:
        return lambda: data.ours.encode(data.audio, num_codebooks=self.codebooks).indices

    def _their_action(self, data: Data) -> Callable[[], Tensor]:
        kind = MODELS[self.model][0]
        model: Any = data.theirs
        frame_rate = model.config.sampling_rate / model.config.hop_length if kind == "Encodec" else 0
        options: dict[str, dict[str, Any]] = {
            "Encodec": {"bandwidth": self.codebooks * 10 * frame_rate / 1000},  # 10 bits a code
            "Dac": {"n_quantizers": self.codebooks},
            "Mimi": {"num_quantizers": self.codebooks},
        }

        @torch.no_grad()
        def run() -> Tensor:
            codes = model.encode(data.audio, **options[kind]).audio_codes
            return codes[0] if kind == "Encodec" else codes  # one chunk

        return run


@dataclass(frozen=True)
class DecodeAudio(_Codec):
    """Indices to samples."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """transformers' samples are what is expected."""
        expected = outputs[TRANSFORMERS]
        return {name: exact.judge_close({"samples": (got, expected)}, _TOLERANCE) for name, got in outputs.items()}

    def work(self) -> Work:
        return Work(_flops(self.model, self.batch, self.seconds, "decode"))

    def goals(self) -> Sequence[Goal]:
        return (Goal(ZOO, "time", TRANSFORMERS, 1.0),)

    def _our_action(self, data: Data) -> Callable[[], Tensor]:
        return lambda: data.ours.decode(data.tokens)

    def _their_action(self, data: Data) -> Callable[[], Tensor]:
        kind, samples = MODELS[self.model][0], data.audio.shape[-1]
        model: Any = data.theirs
        codes = data.tokens.indices

        @torch.no_grad()
        def run() -> Tensor:
            if kind == "Encodec":
                audio = model.decode(codes[None], [None]).audio_values
            else:
                audio = model.decode(audio_codes=codes).audio_values
            return audio.reshape(len(codes), 1, -1)[..., :samples]

        return run


def problems(case: str, device: str, *, quick: bool) -> list[_Codec]:
    kind = EncodeAudio if case == "encode-audio" else DecodeAudio
    if quick:
        return [kind("encodec_24khz.transformers", 1, 0.2, 2, device)]
    return [kind(model, 1 if device == "cpu" else 8, 1.0 if device == "cpu" else 5.0, 8, device) for model in MODELS]


def _theirs(name: str) -> Any:
    """transformers' model with random weights, the same each time; codes at the scale of latents."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind, fields = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**fields)
        model = getattr(transformers, f"{kind}Model")(config).eval()
        for key, buffer in model.named_buffers():
            if key.endswith(("embed", "embed_sum")):
                buffer.normal_()
            elif key.endswith("cluster_usage"):
                buffer.fill_(1)
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale.scale"):  # which begin near 0
                nn.init.constant_(parameter, 0.3)
    return model


@cache
def _flops(name: str, batch: int, seconds: float, part: str) -> float:
    """Operations of the network alone, counted by torch without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    model = zoo.create_model(name).to("meta")
    audio = torch.empty(batch, 1, int(seconds * model.spec.sample_rate), device="meta")
    with torch.no_grad():
        latent = model.latent(audio)
        with FlopCounterMode(display=False) as counter:
            model.latent(audio) if part == "encode" else model.reconstruct(torch.empty_like(latent))
    return counter.get_total_flops()
