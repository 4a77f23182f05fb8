"""Checks of tokenizers of graphs, meshes and other signals that are no arrays of one shape."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.other_signals import meshgpt, pixelbytes
from tokenizers_visual.other_signals.meshgpt import Mesh
from tokenizers_visual.other_signals.vqtoken import ClipTokens, cluster
from zoo.parity import Case, Fixture, Named, gradient
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Any:
    """The case of the fixture's family."""
    cases = {"vqgraph": GraphCase, "meshgpt": MeshCase, "vqtoken": ClipCase, "pixelbytes": DocumentCase}
    return cases[fixture.meta["family"]](fixture, family)


class GraphCase(Case):
    """VQGraph's quantizer, which alone the fixture holds."""

    absent = ("encoder.*", "to_latent.*", "from_codes.*", "to_embedding.*", "to_features.*", "classifier*")

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        similarities = self.model.similarities(inputs["latent"])
        return {**super().quantize(inputs, settings), "similarity": similarities}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model.train()
        latent = inputs["latent"].requires_grad_()
        quantized = model.quantizer(latent)
        losses = self.original_losses(quantized)
        torch.add(losses["loss.commit"], (quantized.codes * inputs["cotangent"]).sum()).backward()
        state = model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {
            **losses,
            "quantized": quantized.codes,
            "grad.latent": gradient(latent),
            **{f"buffer.{key}": state[own] for key, own in named.items() if own in state},
        }


class MeshCase(Case):
    """MeshGPT. The fixture pads its meshes with faces of -1; only what is of real faces is compared."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        meshes = self._meshes(inputs)
        tokens = model.encode(meshes)
        with torch.no_grad():
            features = [model.face_features(mesh) for mesh in meshes]
        config = model.config
        bins = [
            meshgpt.to_bins(mesh.vertices[mesh.faces], config.coordinate_bins, config.value_range).flatten(1)
            for mesh in meshes
        ]
        counts = [mesh.faces.numel() for mesh in meshes]
        indices = torch.stack(tokens.levels, dim=-1)
        per_face = [codes[:count].reshape(len(mesh.faces), -1) for codes, count, mesh in zip(
            model.codes(tokens), counts, meshes)]  # fmt: skip
        found = {
            "indices": [row[:count] for row, count in zip(indices, counts)],
            "face_embed": features,
            "face_edges": [mesh.face_edges().T for mesh in meshes],
            "face_coordinates": bins,
            "quantized": per_face,
        }
        return {name: self._among("encode", name, items) for name, items in found.items()}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        rows = [row[row[:, 0] >= 0] for row in inputs["indices"]]
        decoded = [model.decode(model.tokens(row.T[None]))[0] for row in rows]
        found = {"coordinates": [item.corners for item in decoded], "discrete": [item.bins for item in decoded]}
        return {name: self._among("decode", name, items) for name, items in found.items()}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            logits = [self.model(mesh).reconstruction.logits for mesh in self._meshes(inputs)]
        return {"logits": self._among("reconstruct", "logits", logits)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Of the model in evaluation mode; the mean is over the coordinates of all meshes."""
        model, meshes = self.model, self._meshes(inputs)
        counts = [mesh.faces.numel() for mesh in meshes]
        blur = self.meta["original"]["kwargs"].get("bin_smooth_blur_sigma", 0.4)
        losses = [
            meshgpt.coordinate_loss(model(mesh).reconstruction.logits, mesh, model.config, blur) * count
            for mesh, count in zip(meshes, counts)
        ]
        loss = torch.stack(losses).sum() / sum(counts)
        loss.backward()
        return {"loss.recon": loss, **self.gradients()}

    def _meshes(self, inputs: Named) -> list[Mesh]:
        return [Mesh(v, f[f[:, 0] >= 0]) for v, f in zip(inputs["vertices"], inputs["faces"])]

    def _among(self, kind: str, name: str, items: list[Tensor]) -> Tensor:
        """The first rows of each item in the place of the expected ones, whose other rows are of padding."""
        check = next(check for check in self.meta["checks"] if check["check"] == kind and name in check["outputs"])
        rows = self.fixture.arrays[check["outputs"][name]].clone()
        for row, item in zip(rows, items, strict=True):
            if kind == "encode" and name == "face_edges":  # as many as there are
                row.fill_(-1)
            row[: len(item)] = item.detach()
        return rows


class ClipCase(Case):
    """VQToken: the clusters of a clip from given centres, and the attention."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config = self.model.config.replace(clusters=settings["clusters"], iterations=settings["iterations"])
        clip = type(self.model)(config).encode(inputs["tokens"], start=inputs["init"])
        unit = F.normalize(inputs["tokens"].flatten(0, 1), dim=-1)
        centres = cluster(unit, inputs["init"], config.iterations, config.tolerance)[1]
        return {"indices": clip.indices, "centers": centres, "cluster_means": clip.codes}

    def module(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"output": self.model(ClipTokens(inputs["indices"], inputs["context"]))}


class DocumentCase(Case):
    """PixelBytes, which has no weights; texts are given as their bytes in UTF-8."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        steps = settings.get("data_slicing", {})
        model = type(self.model)(self.model.config.replace(**{f"{name}_step": step for name, step in steps.items()}))
        text, frames, audio = (inputs.get(name) for name in ("text", "image", "audio"))
        document = pixelbytes.Document(
            None if text is None else bytes(text.tolist()).decode(),
            None if frames is None else frames.to(torch.uint8).reshape(-1, *frames.shape[-3:]),
            None if audio is None else torch.atleast_2d(audio),
        )
        return {"indices": model.encode(document).indices, "context": model.context(document)}

    def vocabulary(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {
            "bytes": torch.tensor(list(pixelbytes.BYTES)),
            "palette": torch.tensor(pixelbytes.PALETTE),
            "levels": torch.linspace(-1, 1, pixelbytes.LEVELS),
        }
