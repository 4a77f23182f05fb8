"""Checks of techniques without weights: losses, projections and scores around words that are learned elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenizers_visual.inversion import core_ti, decor, domain_agnostic_e4t, inspiration_tree, negtome
from tokenizers_visual.inversion.textual_inversion import rescaled
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion.generation import encoder_of
from zoo.parity import Fixture, Named, gradient
from zoo.registry import Family


class CoReCase:
    """CoRe: losses of context states and of attention, and the norm of a real word."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.pair = encoder_of(fixture, "clip_text")

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if settings["term"] == "context_attention":
            attention = inputs["attention"].requires_grad_()
            loss = core_ti.context_attention_loss(attention, inputs["reference_attention"], inputs["context_mask"])
            loss.backward()
            return {"loss": loss, "grad.attention": gradient(attention)}
        self.pair.placeholder_id = settings["placeholder_id"]
        word = inputs["word"].requires_grad_()
        words = PseudoWords(word[None, None], self.pair.backbone)
        states = self.pair.encode_text(*self.pair.embed(inputs["input_ids"], words)).hidden
        reference = self.pair.encode_text(inputs["reference_ids"]).hidden
        measure = settings.get("measure", "cosine")
        loss = core_ti.context_embedding_loss(states, reference, inputs["context_mask"], measure)
        loss.backward()
        return {"states": states, "reference_states": reference, "loss": loss, "grad.word": gradient(word)}

    def rescale(self, inputs: Named, settings: dict[str, Any]) -> Named:
        table: Tensor = self.pair.embedding.weight  # type: ignore[assignment]
        return {"word": rescaled(inputs["word"], table[settings["super_category_id"]])}


class DecorCase:
    """DECOR: the projection onto unwanted directions, and prompts without them."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def projector(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"projector": decor.projector(inputs["undesired"])}

    def project_out(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"embeddings": decor.project_out(inputs["embeddings"], inputs["undesired"], settings["alpha"])}

    def singular_values(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"values": decor.singular_values(inputs["embeddings"])}


class DomainAgnosticCase:
    """Domain-agnostic E4T: nearest tokens, the loss of each item, and its gradients."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        words = inputs["embeddings"].requires_grad_()
        if settings.get("term") == "l2":
            loss = domain_agnostic_e4t.norm_loss(words)
            loss.backward()
            return {"loss.l2": loss, "grad.embeddings": gradient(words)}
        if settings.get("neighbours_by", "cosine") != "cosine":
            raise ValueError(f"expected neighbours by cosine, got by {settings['neighbours_by']}")
        items = domain_agnostic_e4t.nearest_token_loss(
            words,
            inputs["token_table"],
            count=settings["k"],
            temperature=settings["temperature"],
            likeness=settings["similarity"],
        )
        items.mean().backward()
        return {
            "nearest": domain_agnostic_e4t.nearest_tokens(words, inputs["token_table"], settings["k"]),
            "item_loss": items,
            "loss.contrastive": items.mean(),
            "grad.embeddings": gradient(words),
        }


class InspirationTreeCase:
    """Inspiration Tree: how often times are drawn, and the score of a split."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def timestep_weights(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"weights": inspiration_tree.timestep_weights(settings["num_train_timesteps"], settings["t_dist"])}

    def seed_score(self, inputs: Named, settings: dict[str, Any]) -> Named:
        result = inspiration_tree.seed_score(inputs["left"], inputs["right"], inputs["both"])
        return {"similarity": result.similarity, "score": result.score}


class NegToMeCase:
    """NegToMe: tokens pushed away from a reference's."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def merge(self, inputs: Named, settings: dict[str, Any]) -> Named:
        pushed = negtome.push_from_reference(
            inputs["hidden"],
            strength=settings["alpha"],
            threshold=settings["threshold"],
            mask=inputs.get("reference_mask"),
        )
        return {"hidden": pushed}
