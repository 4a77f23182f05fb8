"""Checks of the projectors for composed retrieval: words of images, prompts with words, losses, inversion."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion import freedom, lincir, pic2word, rtd, searle
from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion.clips import (
    PLACEHOLDER_ID,
    companion,
    open_clip_pair,
    split,
    text_encoder,
    transformers_pair,
)
from zoo import checkpoint
from zoo.parity import Case, Fixture, Named, gradient
from zoo.registry import Family


class ProjectorCase(Case):
    """A projector beside the CLIP that its fixture names."""

    model: Projector
    make_pair: Callable[[Fixture, int], ClipPair] = staticmethod(open_clip_pair)

    def __init__(self, fixture: Fixture, family: Family) -> None:
        super().__init__(fixture, family)
        self.pair = self.make_pair(companion(fixture), PLACEHOLDER_ID)

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
        words = self.words(inputs["pseudo_words"])
        output = self.pair.encode_text(*self.pair.embed(inputs["token_ids"], words, optional=True))
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


class RTDCase:
    """RTD: a second text encoder, trained beside a frozen projector of SEARLE's shape."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        clip = companion(fixture)
        original = {"kwargs": fixture.meta["original"]["kwargs"]["phi"]}
        phi, rest = split(fixture.weights, "phi.")
        self.phi = searle.Searle(searle.config_from_original({"original": original, "clip": clip.name})).eval()
        checkpoint.load_into(self.phi, searle.KEY_MAP(phi))
        self.frozen = transformers_pair(clip, PLACEHOLDER_ID)
        config = clip.meta["original"]["transformers"]["text_config"]
        self.trained = text_encoder(split(rest, "text_encoder_train.")[0], config, clip.name)
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


class FreeDomCase:
    """FreeDom: words by votes, prompts of them, rankings and their measures. It has no weights."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.config = freedom.config_from_original(fixture.meta)
        self.pair = open_clip_pair(companion(fixture), PLACEHOLDER_ID)

    def invert_discrete(self, inputs: Named, settings: dict[str, Any]) -> Named:
        voted = self._voted(inputs, settings)
        return {
            "memory": voted.voters,
            "word_indices": voted.votes,
            "labels": voted.labels,
            "weights": voted.weights,
        }

    def compose(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"text_features": F.normalize(self.pair.text_features(inputs["text_ids"]), dim=-1)}

    def retrieve(self, inputs: Named, settings: dict[str, Any]) -> Named:
        queries, gallery = inputs["query"], inputs["database"]
        if settings["method"] != "freedom":
            similarity = freedom.baseline(settings["method"], queries, gallery, inputs["domain_feature"])
            return {"similarity": similarity, "ranking": freedom.rank(similarity)}
        voted = self._voted(inputs, settings)
        rows = []
        for label in voted.labels.flatten().tolist():  # each word of this vocabulary is one token
            word = [int(inputs["corpus_ids"][label])] if label >= 0 else []
            row = [self.pair.start_id, *word, int(inputs["domain_id"]), self.pair.end_id]
            rows.append(row + [self.pair.pad_id] * (self.pair.context_length - len(row)))
        fused = voted.fuse(F.normalize(self.pair.text_features(torch.tensor(rows)), dim=-1))
        similarity = fused @ gallery.T
        return {"fused": fused, "similarity": similarity, "ranking": freedom.rank(similarity)}

    def metrics(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """In percent with two decimals, as the original rounds them."""
        same = inputs["class_query"][:, None] == inputs["class_database"]
        positive = (same & (inputs["domain_database"] == inputs["domain_target"])).gather(1, inputs["ranking"])
        metrics = freedom.retrieval_metrics(positive, settings["at"])
        return {
            "metrics": torch.tensor([round(value, 2) for value in metrics.values()]),
            "ap": freedom.average_precision(positive),
        }

    def _voted(self, inputs: Named, settings: dict[str, Any]) -> freedom.VotedWords:
        config = self.config.replace(neighbours=settings["kappa"], words_per_image=settings["n"], words=settings["m"])
        return freedom.FreeDom(config).invert(inputs["query"], inputs["database"], inputs["corpus"])
