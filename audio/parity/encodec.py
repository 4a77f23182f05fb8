"""Checks of EnCodec's fixtures that go beyond the tokenizer: segments and their gains, files, balanced losses."""

from __future__ import annotations

from typing import Any

import torch

from audio.encodec import Encodec
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Any:
    """The case that fits the original's class."""
    return EncodecCase(fixture, family)


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
        frames = self.model._frames(audio.shape[-1])
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
