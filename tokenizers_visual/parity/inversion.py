"""Checks of the projectors' fixtures: words of images, prompts with words, losses, and inversion by optimisation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion import diffusion, lincir, long_clip, pic2word, rtd, searle
from tokenizers_visual.inversion.clip import ClipPair, OpenClipPair, TextOutput, TransformersPair
from tokenizers_visual.inversion.projector import Projector, PseudoWords
from zoo import checkpoint
from zoo.checkpoint import KeyMap
from zoo.parity import Case, Fixture, FixtureError, Named, gradient
from zoo.registry import Family

PLACEHOLDER_ID = 259  # of "$" in CLIP's vocabulary


def case(fixture: Fixture, family: Family) -> Any:
    """The case of the fixture's family."""
    cases = {"pic2word": Pic2WordCase, "searle": SearleCase, "lincir": LinCIRCase, "ladi_vton": LadiVtonCase}
    name = fixture.meta["family"]
    alone = {"clip": ClipCase, "long_clip": LongClipCase, "rtd": RTDCase, "textual_inversion": PromptCase}
    return alone[name](fixture) if name in alone else cases[name](fixture, family)


def open_clip_pair(clip: Fixture, placeholder_id: int) -> OpenClipPair:
    """The CLIP of a fixture, in open_clip."""
    import open_clip

    original = clip.meta["original"]
    model = open_clip.CLIP(**original["open_clip"])
    prefix = clip.meta["key_styles"]["transformers"]
    checkpoint.load_into(model, _split(clip.weights, prefix)[1])
    return OpenClipPair(model, backbone=clip.name, placeholder_id=placeholder_id)


def transformers_pair(clip: Fixture, placeholder_id: int) -> TransformersPair:
    """The CLIP of a fixture, in transformers."""
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**clip.meta["original"]["transformers"]))
    prefix = clip.meta["key_styles"]["transformers"]
    checkpoint.load_into(model, _split(clip.weights, prefix)[0])
    return TransformersPair(model, backbone=clip.name, placeholder_id=placeholder_id)


def text_encoder(weights: Named, config: dict[str, Any], backbone: str) -> TransformersPair:
    """A text encoder alone, under its published names; with a projection where the weights hold one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    projected = "text_projection.weight" in weights
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    ignored = {"text_model.embeddings.position_ids": None, "embeddings.position_ids": None}
    names = KeyMap({**ignored, "*": "*"}, prefix="" if projected else "text_model.")
    model = kind(CLIPTextConfig(**config))
    checkpoint.load_into(model, names(weights))
    return TransformersPair(model, backbone=backbone, placeholder_id=PLACEHOLDER_ID)


class ClipCase:
    """A CLIP itself, in both libraries, which must agree with each other."""

    def __init__(self, fixture: Fixture) -> None:
        self.pairs: list[ClipPair] = [pair(fixture, PLACEHOLDER_ID) for pair in (open_clip_pair, transformers_pair)]

    def image_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self._agreed(lambda pair: pair.image_features(inputs["image"]))}

    def token_embeddings(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"embeddings": self._agreed(lambda pair: pair.token_embeddings(inputs["token_ids"]))}

    def text_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self._agreed(lambda pair: pair.text_features(inputs["token_ids"]))}

    def logits(self, inputs: Named, settings: dict[str, Any]) -> Named:
        def logits(pair: ClipPair) -> Tensor:
            images, texts = pair.image_features(inputs["image"]), pair.text_features(inputs["token_ids"])
            return pic2word.image_text_logits(images, texts, pair.logit_scale)

        return {"logits_per_image": self._agreed(logits)}

    def _agreed(self, run: Callable[[ClipPair], Tensor]) -> Tensor:
        one, other = (run(pair) for pair in self.pairs)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
        return one


class ProjectorCase(Case):
    """A projector beside the CLIP that its fixture names."""

    model: Projector
    make_pair: Callable[[Fixture, int], ClipPair] = staticmethod(open_clip_pair)

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        folder = fixture.folder.parent / self.meta["clip"]
        if not (folder / "meta.json").is_file():
            raise FixtureError(f"expected the fixture {self.meta['clip']} in {folder.parent}, beside {fixture.name}")
        self.pair = self.make_pair(Fixture.read(folder), PLACEHOLDER_ID)

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if "image" in inputs:
            words = self.model.project_images(inputs["image"], self.pair)
        else:
            words = self.model.project(inputs["image_features"])
        return {"pseudo_words": words.embeddings}

    def words(self, embeddings: Tensor) -> PseudoWords:
        """A fixture's words: (B, D), or (B, n, D)."""
        return PseudoWords(embeddings if embeddings.ndim == 3 else embeddings[:, None], self.pair.backbone)


class Pic2WordCase(ProjectorCase):
    """Pic2Word: the i-th placeholder takes the i-th words; the training prompt has its word before the end."""

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        ids = inputs["token_ids"]
        self.pair.placeholder_id = settings.get("placeholder_id", PLACEHOLDER_ID)
        if settings.get("insert") == "before end":
            ids = self._with_placeholder(ids)
        words = [self.words(value) for name, value in inputs.items() if name.startswith("pseudo_words")]
        return {"text_features": self.pair.compose(ids, words)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        images = self.pair.image_features(inputs["image"])
        words = PseudoWords(self.model(images), self.pair.backbone)
        texts = self.pair.compose(self._with_placeholder(inputs["prompt_ids"]), words)
        losses = pic2word.contrastive_losses(images, texts, self.pair.logit_scale)
        total = (losses["image"] + losses["text"]) / 2
        total.backward()
        return {
            "logits_per_image": pic2word.image_text_logits(images, texts, self.pair.logit_scale),
            "loss.image": losses["image"],
            "loss.text": losses["text"],
            "loss.total": total,
            **self.gradients(),
        }

    def _with_placeholder(self, ids: Tensor) -> Tensor:
        """Each row (L,) with a placeholder before its end, and the last column dropped."""
        rows = []
        for row in ids:
            end = int((row == self.pair.end_id).int().argmax())
            rows.append(torch.cat([row[:end], row.new_tensor([self.pair.placeholder_id]), row[end:-1]]))
        return torch.stack(rows)


class SearleCase(ProjectorCase):
    """SEARLE: the first placeholder alone is filled; distillation, and words found by optimisation."""

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.pair.placeholder_id = settings.get("placeholder_id", PLACEHOLDER_ID)
        words = self.words(inputs["pseudo_words"])
        return {"text_features": self.pair.compose(inputs["token_ids"], words, fill="first")}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        estimated = inputs["estimated"].requires_grad_()
        loss = searle.distillation_loss(inputs["target"], estimated, settings["temperature"])
        loss.backward()
        return {"loss.distil": loss, "grad.estimated": gradient(estimated)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        words = PseudoWords(self.model(inputs["image_features"]), self.pair.backbone)
        distil = searle.distillation_loss(inputs["oti_tokens"], words.embeddings[:, 0], settings["temperature"])
        plain = self.pair.text_features(inputs["regular_ids"])
        phrase = searle.cosine_loss(self.pair.compose(inputs["phrase_ids"], words, fill="first"), plain)
        total = settings["lambda_distil"] * distil + settings["lambda_gpt"] * phrase
        total.backward()
        return {"loss.distil": distil, "loss.gpt": phrase, "loss.total": total, **self.gradients()}

    def invert(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config = searle.InversionConfig(
            learning_rate=settings["lr"],
            weight_decay=settings["weight_decay"],
            cosine_weight=float(settings["lambda_cos"]),
            phrase_weight=float(settings["lambda_gpt"]),
            ema_decay=settings["ema_decay"],
        )
        inversion = searle.Inversion(self.pair, inputs["image_features"], config, initial=inputs["init"])
        losses, trajectory = [], []
        for step in zip(inputs["template_ids"], inputs["phrase_ids"], inputs["regular_ids"]):
            losses.append(torch.stack(list(inversion.step(searle.Sentences(*step)).values())))
            trajectory.append(inversion.current.detach().clone())
        ema = inversion.words.embeddings
        return {"losses": torch.stack(losses), "trajectory": torch.stack(trajectory), "ema": ema}


class LinCIRCase(ProjectorCase):
    """LinCIR: every placeholder of a row takes its word; training on captions, and their masking."""

    make_pair = staticmethod(transformers_pair)

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.pair.placeholder_id = settings.get("placeholder_id", PLACEHOLDER_ID)
        output = self.pair.encode_text(*self.pair.embed(inputs["token_ids"], self.words(inputs["pseudo_words"])))
        return {"text_features": output.features, "last_hidden": output.hidden}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model = lincir.LinCIR(self.model.config.replace(normalize=settings["l2_normalize"])).eval()  # type: ignore[arg-type]
        checkpoint.load_into(model, self.model.state_dict())
        self.model = model
        features = self.pair.text_features(inputs["original_ids"])
        noised = lincir.noised(features, inputs["noise_scale"], inputs["noise_normal"])
        words = PseudoWords(model(noised), self.pair.backbone)
        rebuilt = self.pair.compose(inputs["masked_ids"], words)
        loss = lincir.self_masking_loss(rebuilt, features)
        loss.backward()
        return {
            "phi_input": model.prepare(noised),
            "pseudo_words": words.embeddings,
            "text_features": rebuilt,
            "loss.mse": loss,
            **self.gradients(),
        }

    def ema(self, inputs: Named, settings: dict[str, Any]) -> Named:
        average, *values = inputs["values"]
        shadow = []
        for step, value in enumerate(values, start=1):
            average = average.lerp(value, 1 - lincir.ema_decay(step, settings["decay"]))
            shadow.append(average)
        return {"shadow": torch.stack(shadow)}

    def mask_keywords(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Its expectations stand in the fixture's text, and are compared here."""
        rng = random.Random(0)
        for case in self.meta["masking_cases"]:
            cleaned = lincir.clean_caption(case["caption"])
            found = lincir.keywords(zip(case["tokens"], case["pos"]))
            masked = lincir.mask_keywords(cleaned, found, rng, placeholder="[$]")
            got = {"cleaned": cleaned, "keywords": found, "masked": masked}
            if got != {name: case[name] for name in got}:
                raise ValueError(f"expected {case}, got {got}")
        return {}


class LadiVtonCase(Case):
    """LaDI-VTON's adapter, whose text encoder lies in the fixture itself."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        stated = fixture.meta["companions"]["clip_text"]
        encoder, adapter = _split(fixture.weights, stated["prefix"])
        super().__init__(replace(fixture, weights=adapter), family)
        config: Any = self.model.config
        self.pair = text_encoder(encoder, stated["config"], config.backbone)

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"pseudo_words": self.model.project(inputs["features"]).embeddings}

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        output = self._encoded(inputs["input_ids"], inputs["pseudo_words"])
        return {"last_hidden_state": output.hidden, "pooled": output.features}

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

    def __init__(self, fixture: Fixture) -> None:
        sizes = fixture.meta["original"]["kwargs"]
        self.encoders = [
            text_encoder(_split(fixture.weights, f"{name}.")[0], config, name) for name, config in sizes.items()
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
            place = inputs["input_ids_2"].argmax(1)
            pooled = encoders[1].model.text_projection(hidden[torch.arange(len(hidden)), place])  # type: ignore[operator]
        return {"prompt_embeds": result.prompt, "pooled": pooled}


class RTDCase:
    """RTD: a second text encoder, trained beside a frozen projector of SEARLE's shape."""

    def __init__(self, fixture: Fixture) -> None:
        clip = Fixture.read(fixture.folder.parent / fixture.meta["clip"])
        original = {"kwargs": fixture.meta["original"]["kwargs"]["phi"]}
        phi, rest = _split(fixture.weights, "phi.")
        self.phi = searle.Searle(searle.config_from_original({"original": original, "clip": clip.name})).eval()
        checkpoint.load_into(self.phi, searle.KEY_MAP(phi))
        self.frozen = transformers_pair(clip, PLACEHOLDER_ID)
        config = clip.meta["original"]["transformers"]["text_config"]
        self.trained = text_encoder(_split(rest, "text_encoder_train.")[0], config, clip.name)
        self.trained.model.requires_grad_(True)

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        names = ("reference_ids", "target_ids", "concat_ids", "special_ids")
        triplets = rtd.Triplets(*(inputs[name] for name in names))
        scale = settings["noise_factor"] * inputs["noise_scale"]
        step = rtd.step(self.frozen, self.trained, self.phi, triplets, scale, inputs["noise_normal"])
        loss = step.loss(settings["temperature"])
        loss.backward()
        slopes = {f"grad.{name}": gradient(value) for name, value in self.trained.model.named_parameters()}
        tables = "grad.text_model.embeddings."
        rows = {
            f"{tables}position_embedding.weight[:12]": slopes[f"{tables}position_embedding.weight"][:12],
            f"{tables}token_embedding.weight[259]": slopes[f"{tables}token_embedding.weight"][PLACEHOLDER_ID],
        }
        outputs = {"pseudo_words": step.words.embeddings, "anchors": step.anchors, "queries": step.queries}
        return {**outputs, "loss.contrastive": loss, **slopes, **rows}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        estimated = inputs["estimated"].requires_grad_()
        loss = searle.distillation_loss(inputs["target"], estimated, settings["temperature"])
        loss.backward()
        return {"loss.contrastive": loss, "grad.estimated": gradient(estimated)}


class LongClipCase:
    """Long-CLIP, its stretched positions and its losses."""

    def __init__(self, fixture: Fixture) -> None:
        sizes = fixture.meta["original"]["kwargs"]
        self.pair = long_clip.long_clip_pair(
            fixture.weights,
            backbone="long_clip",
            placeholder_id=PLACEHOLDER_ID,
            image_head_width=sizes["vision_width"] // sizes.get("vision_heads", sizes["vision_width"] // 64),
            text_head_width=sizes["transformer_width"] // sizes["transformer_heads"],
        )

    def text_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        output = self.pair.encode_text(inputs["token_ids"])
        return {"features": output.features, "hidden[:24]": output.hidden[:, :24]}

    def image_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self.pair.image_features(inputs["image"])}

    def stretch_positions(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"positions": long_clip.stretch_positions(inputs["positions"], **settings)}

    def principal_components(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": long_clip.principal_components(inputs["features"], settings["components"])}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        losses = long_clip.long_clip_losses(
            **{name: value.requires_grad_() for name, value in inputs.items()},
            scale=math.exp(settings["log_logit_scale"]),
            components=settings["components"],
            label_smoothing=settings["label_smoothing"],
        )
        (losses["long"] + losses["short"]).backward()
        slopes = {f"grad.{name}": gradient(value) for name, value in inputs.items()}
        return {"loss.long": losses["long"], "loss.short": losses["short"], **slopes}


def _split(weights: Named, prefix: str) -> tuple[Named, Named]:
    """The weights under a prefix, without it, and the others."""
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in weights.items() if not key.startswith(prefix)}
