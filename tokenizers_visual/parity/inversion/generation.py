"""Checks of words for text-to-image models: prompt embeddings of pipelines, and makers of words for their prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion import batex, diffusion, neti, precise_control
from tokenizers_visual.inversion.clip import TextOutput, TransformersPair
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion.clips import split, text_encoder
from zoo import checkpoint
from zoo.parity import Case, Fixture, Named, gradient
from zoo.registry import Family


class LadiVtonCase(Case):
    """LaDI-VTON's adapter, whose text encoder lies in the fixture itself."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        stated = fixture.meta["companions"]["clip_text"]
        encoder, adapter = split(fixture.weights, stated["prefix"])
        super().__init__(replace(fixture, weights=adapter), family)
        config: Any = self.model.config
        self.pair = text_encoder(encoder, stated["config"], config.backbone)

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"pseudo_words": self.model.project(inputs["features"]).embeddings}

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        output = self._encoded(inputs["input_ids"], inputs["pseudo_words"])
        return {"last_hidden_state": output.hidden, "pooled": pooled_at_largest(output.hidden, inputs["input_ids"])}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        output = self._encoded(inputs["input_ids"], self.model(inputs["features"]))
        loss = F.mse_loss(output.hidden, inputs["target"])
        loss.backward()
        return {"loss.mse": loss, **self.gradients()}

    def gradients(self) -> Named:
        """With those of the joined queries, keys and values apart."""
        found = super().gradients()
        for place, block in enumerate(self.model.blocks):
            for kind in ("weight", "bias"):
                parts = gradient(getattr(block.attention.qkv, kind)).chunk(3)
                found |= {f"grad.encoder_layers.{place}.self_attn.{n}_proj.{kind}": p for n, p in zip("qkv", parts)}
        return found

    def _encoded(self, ids: Tensor, embeddings: Tensor) -> TextOutput:
        words = PseudoWords(embeddings, self.pair.backbone)
        return self.pair.encode_text(*self.pair.embed(ids, words, fill="first", optional=True))


class PromptCase:
    """Prompt embeddings of pipelines; ids beyond the vocabulary are learned words, in order."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        sizes = fixture.meta["original"]["kwargs"]
        self.encoders = [
            text_encoder(split(fixture.weights, f"{name}.")[0], config, name) for name, config in sizes.items()
        ]

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        suffixes = [""] if settings["convention"] == "sd15" else ["", "_2"]
        encoders, first = self.encoders[: len(suffixes)], settings["first_added_id"]
        embedded = []
        for pair, suffix in zip(encoders, suffixes):
            ids, words = inputs[f"input_ids{suffix}"], inputs[f"embeddings{suffix}"]
            added = ids >= first
            table = words[(ids - first).clamp(min=0)]
            ids = ids.masked_fill(added, 0)
            embedded.append((ids, torch.where(added[..., None], table, pair.token_embeddings(ids))))
        result = diffusion.encode_prompt(encoders, embedded, clip_skip=settings["clip_skip"])
        if result.pooled is None:
            return {"prompt_embeds": result.prompt}
        pooled = result.pooled
        if settings["pooled_at"] == "largest id":
            hidden = encoders[1].encode_text(*embedded[1]).hidden
            pooled = encoders[1].model.text_projection(pooled_at_largest(hidden, inputs["input_ids_2"]))  # type: ignore[operator]
        return {"prompt_embeds": result.prompt, "pooled": pooled}


class TextEncoderCase(Case):
    """A maker of words beside the text encoder that lies in its fixture."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        _, rest = split(fixture.weights, fixture.meta["companions"]["clip_text"]["prefix"])
        super().__init__(replace(fixture, weights=rest), family)
        self.pair = encoder_of(fixture, self.model.config.backbone)


def pooled_at_largest(hidden: Tensor, ids: Tensor) -> Tensor:
    """States (B, D) at the largest id of each row, where the originals pool: an added placeholder, if there is one."""
    return hidden[torch.arange(len(hidden)), ids.argmax(1)]


def encoder_of(fixture: Fixture, backbone: str) -> TransformersPair:
    """The text encoder that lies in a fixture."""
    stated = fixture.meta["companions"]["clip_text"]
    return text_encoder(split(fixture.weights, stated["prefix"])[0], stated["config"], backbone)


class NeTICase(TextEncoderCase):
    """NeTI: encoding of times and layers, words and bypass, and their two versions of a prompt."""

    def position_encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"encoded": self.model.encode(inputs["timesteps"], inputs["unet_layers"])}

    def input_layer_init(self, inputs: Named, settings: dict[str, Any]) -> Named:
        changed = {"time_anchors": settings["num_time_anchors"], "layers": settings["num_layers"]}
        fresh = neti.NeTI(self.model.config.replace(**changed))
        fresh.frequencies.copy_(self.model.frequencies)  # type: ignore[operator]
        return {"weight": fresh.anchor_encodings()}

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        timed = self._words(inputs, settings)
        parts = [timed.words.embeddings[:, 0], *([] if timed.bypass is None else [timed.bypass])]
        return {"mapped": torch.cat(parts, dim=-1)}

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.pair.placeholder_id = settings["placeholder_id"]
        result = self.model.compose(self.pair, inputs["input_ids"], self._words(inputs, settings))
        return {
            "last_hidden_state": result.keys.hidden,
            "pooled": pooled_at_largest(result.keys.hidden, inputs["input_ids"]),
            "bypass_last_hidden_state": result.values.hidden,
            "bypass_pooled": pooled_at_largest(result.values.hidden, inputs["input_ids"]),
        }

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        mapped = self.model(inputs["timesteps"], inputs["unet_layers"], keep=inputs.get("dropout_idxs"))
        loss = F.mse_loss(mapped, inputs["target"])
        loss.backward()
        slopes = self.gradients()
        first = {name.replace("net.0", "input_layer"): slope for name, slope in slopes.items() if ".net.0." in name}
        return {"mapped": mapped, "loss.mse": loss, **slopes, **first}

    def _words(self, inputs: Named, settings: dict[str, Any]) -> neti.TimedWords:
        return self.model.project(inputs["timesteps"], inputs["unet_layers"], keep=settings.get("truncation_idx"))


class BaTexCase:
    """BaTex: the choice of a basis, the word, and the gradient of its coordinates."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.config = batex.config_from_original(fixture.meta)
        self.pair = encoder_of(fixture, self.config.backbone)
        self.table = self.pair.embedding.weight[:-1]  # type: ignore[index] # the last row is the placeholder's

    def basis(self, inputs: Named, settings: dict[str, Any]) -> Named:
        word, size, measure = settings["initializer_id"], settings["k"], settings["dist"]
        if measure.startswith("Cosine_similarity as coded"):  # over the vocabulary, so that its ids are of channels
            channels = F.cosine_similarity(self.table, self.table[word][None], dim=0)
            return {"ids": channels.topk(size).indices}
        named = {"Vector_dot": "dot", "L2": "l2", "Cosine_similarity": "cosine"}[measure]
        return {"ids": batex.choose_basis(self.table, word, size, named, second=settings.get("second_id"))}  # type: ignore[arg-type]

    def initial_weight(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"weight": batex.BaTex(self.config.replace(size=settings["k"])).weight}

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"word": self._model(inputs)().embeddings}

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        hidden = self._states(self._model(inputs), inputs["input_ids"], settings)
        return {"last_hidden_state": hidden, "pooled": pooled_at_largest(hidden, inputs["input_ids"])}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model = self._model(inputs)
        mse = F.mse_loss(self._states(model, inputs["input_ids"], settings), inputs["target"])
        loss = mse + settings["lambda_weight"] * model.regulariser()
        loss.backward()
        return {
            "loss.mse": mse,
            "loss.sum_to_one": model.regulariser(),
            "loss": loss,
            "grad.weight": gradient(model.weight),
        }

    def _model(self, inputs: Named) -> batex.BaTex:
        model = batex.BaTex(self.config.replace(size=len(inputs["ids"])))
        published = {"weight_vector": inputs["weight"], "vocab_ids": inputs["ids"]}
        basis = self.table[inputs["ids"]].detach()
        checkpoint.load_into(model, batex.KEY_MAP({**published, "candidate_embedding_matrix": basis}))
        return model

    def _states(self, model: batex.BaTex, ids: Tensor, settings: dict[str, Any]) -> Tensor:
        self.pair.placeholder_id = settings["placeholder_id"]
        return self.pair.encode_text(*self.pair.embed(ids, model(), fill="first")).hidden


class PreciseControlCase(Case):
    """PreciseControl: words of W+ codes, as they come and anchored to a general word, and their place in a prompt."""

    def project_raw(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"raw": self.model(inputs["w_plus"], inputs.get("timesteps"))}

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self._scale(settings)
        codes, times, edit = inputs["w_plus"], inputs.get("timesteps"), inputs.get("delta_w")
        words = self.model.project(codes, inputs["domain_embedding"], times, edit=edit)
        return {"words": words.embeddings, "loss.reg": precise_control.norm_loss(self.model(codes, times))}

    def expand(self, inputs: Named, settings: dict[str, Any]) -> Named:
        places = [inputs[name] for name in inputs if name.startswith("positions")]
        embeddings, found = precise_control.expand(inputs["prompt_embeddings"], places, inputs["words"])
        return {"prompt_embeddings": embeddings, **{f"final_positions_{i}": part for i, part in enumerate(found)}}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self._scale(settings)
        raw = self.model(inputs["w_plus"], inputs.get("timesteps"))
        mse = F.mse_loss(self.model.anchored(raw, inputs["domain_embedding"]), inputs["target"])
        reg = precise_control.norm_loss(raw)
        loss = mse + settings["regularization_weight"] * reg
        loss.backward()
        named = {name.replace("grad.", "grad.stylegan_mlp."): slope for name, slope in self.gradients().items()}
        return {"loss.mse": mse, "loss.reg": reg, "loss": loss, **named}

    def _scale(self, settings: dict[str, Any]) -> None:
        self.model.config = self.model.config.replace(scale=settings["alpha"])
