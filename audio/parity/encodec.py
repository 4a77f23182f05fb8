"""Checks of EnCodec's fixtures that go beyond the tokenizer: segments and their gains, files, balanced losses."""

from __future__ import annotations

from typing import Any

import torch

from audio import ecdc, encodec_entropy
from audio.encodec import Encodec, EncodecConfig
from audio.encodec_entropy import CodeModel
from zoo import checkpoint
from zoo.ops.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder, quantized_cdf
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family, registry


def case(fixture: Fixture, family: Family) -> Any:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    return FileCase(fixture, family) if original == "LMModel" else EncodecCase(fixture, family)


class EncodecCase(Case):
    """Indices are (B, codebooks, frames), of segments one array each (`indices.0`, ...), or as transformers has them:
    (segments, B, codebooks, frames), the last segment continued with zeros.
    """

    model: Encodec

    def count(self, settings: dict[str, Any]) -> int:
        """Codebooks of a bandwidth in kbit/s."""
        within = [rate <= 1000 * settings["bandwidth"] for rate in self.model.bitrates]
        return max(1, sum(within))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"]
        tokens = self.model.encode(audio, num_codebooks=self.count(settings))
        with torch.no_grad():
            latent = channels_first(self.model.latent(audio))
        frames = self.model.config.frames(audio.shape[-1])
        parts = tokens.indices.split(frames, dim=-1)
        outputs = {"indices": tokens.indices, "latent": latent}
        if "transformers" in self.meta["original"]["class"]:
            longest = max(frames)
            padded = [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts]
            outputs["indices"] = torch.stack(padded)
        for i, (part, of_part) in enumerate(zip(parts, latent.split(frames, dim=-1))):
            outputs |= {f"indices.{i}": part, f"latent.{i}": of_part}
        if tokens.extent is not None and tokens.extent.gains is not None:
            for i, gain in enumerate(torch.tensor(tokens.extent.gains).unbind(1)):
                outputs[f"scale.{i}"] = gain[:, None]
        return outputs

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if "indices" not in inputs:
            parts = [inputs[f"indices.{i}"] for i in range(sum(name.startswith("indices") for name in inputs))]
        elif inputs["indices"].ndim == 4:
            parts = list(inputs["indices"])
            parts[-1] = parts[-1][..., : parts[-1].shape[-1] - settings.get("last_frame_pad_length", 0)]
        else:
            parts = [inputs["indices"]]
        scales = [inputs[f"scale.{i}"] for i in range(len(parts)) if f"scale.{i}" in inputs]
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*torch.cat(parts, dim=-1).unbind(1))
            return {"audio": self.model.reconstruct(codes, gains=torch.cat(scales, dim=1) if scales else None)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"audio": self.model.decode(self.model.encode(inputs["audio"], num_codebooks=self.count(settings)))}

    def stream_encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        chunks = inputs["audio"].split(settings["chunks"], dim=-1)
        with self.model.streaming(self.count(settings)) as stream:
            parts = [stream.encode(chunk, last=chunk is chunks[-1]) for chunk in chunks]
        return {"indices": torch.cat(parts, dim=-1)}

    def stream_decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        chunks = inputs["indices"].split(settings["chunks"], dim=-1)
        with self.model.streaming() as stream:
            parts = [stream.decode(chunk, last=chunk is chunks[-1]) for chunk in chunks]
        return {"audio": torch.cat(parts, dim=-1)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.model.train()
        output = self.model(inputs["audio"])
        output.latent.retain_grad()
        l1 = (output.reconstruction - inputs["audio"]).abs().mean()
        losses = {"loss.l1": l1, **self.original_losses(output.quantized)}
        sum(losses.values(), torch.zeros(())).backward()
        state = {f"state.{key}": value for key, value in self.published_codebooks().items()}
        last = f"quantizer.vq.layers.{len(self.model.vocab_sizes) - 1}._codebook.embed"
        return {
            "audio": output.reconstruction,
            "grad.latent": channels_first(gradient(output.latent)),
            "state.last.embed": state[f"state.{last}"],
            **losses,
            **state,
            **self.gradients(),
        }

    def published_codebooks(self) -> Named:
        """The codebooks as they are now, under their published names."""
        own = self.model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {key: own[name] for key, name in named.items() if name and name.startswith("quantizer.")}


class FileCase:
    """Files, arithmetic coding, and the language model that it codes by."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.code_model = CodeModel(encodec_entropy.config_from_original(fixture.meta["original"]["kwargs"])).eval()
        checkpoint.load_into(self.code_model, encodec_entropy.KEY_MAP(fixture.weights))
        self.expected = fixture.arrays

    def container(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Writing, and reading what was written."""
        names = sorted(name for name in inputs if name.startswith("indices"))
        segments = [inputs[name] for name in names]
        scales = tuple(float(inputs[name]) for name in sorted(inputs) if name.startswith("scale"))
        code_model = self.code_model if settings["lm"] else None
        size = code_model.config.codebook_size if code_model else 1024
        data = ecdc.write(settings["model"], segments, settings["audio_length"], scales or None, size, code_model)
        about, start = ecdc.read_header(data)
        config = EncodecConfig.from_dict(registry.card(settings["model"]).config)
        parts, gains = ecdc.read_segments(data[start:], about, config, size, code_model)
        if not all(torch.equal(part, segment) for part, segment in zip(parts, segments, strict=True)):
            raise ValueError("expected to read the codes that were written, got others")
        if tuple(gains or ()) != scales:
            raise ValueError(f"expected to read the scales {scales}, got {gains}")
        return {"bytes": torch.tensor(list(data), dtype=torch.uint8)}

    def arithmetic_code(self, inputs: Named, settings: dict[str, Any]) -> Named:
        cdfs = quantized_cdf(inputs["pdfs"])
        encoder = ArithmeticEncoder()
        for symbol, cdf in zip(inputs["symbols"].tolist(), cdfs.tolist()):
            encoder.push(symbol, cdf)
        data = encoder.finish()
        decoder = ArithmeticDecoder(data)
        if [decoder.pull(cdf) for cdf in cdfs.tolist()] != inputs["symbols"].tolist():
            raise ValueError("expected to read the symbols that were written, got others")
        return {"bytes": torch.tensor(list(data), dtype=torch.uint8), "cdf.0": cdfs[0]}

    def language_model(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"probabilities": self.code_model(inputs["indices"])}
