"""What the checks of audio discriminators share: names of weight norm, judgements and gradients by fixture names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from zoo.losses.audio_discriminators import Judgement
from zoo.parity import Named


def weight_normed_names(keys: Iterable[str], changes: Mapping[str, str]) -> dict[str, str]:
    """Published names -> own names: weight norm as torch spells it now, and parts of names that differ."""
    spelling = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    names = {}
    for key in keys:
        own = key
        for old, new in {**changes, **spelling}.items():
            own = own.replace(old, new)
        names[key] = own
    return names


def judgements(found: tuple[Judgement, ...]) -> Named:
    """Logits and feature maps under the names of fixtures."""
    outputs = {}
    for i, judgement in enumerate(found):
        outputs[f"logits.{i}"] = judgement.logits
        outputs |= {f"feature.{i}.{j}": feature for j, feature in enumerate(judgement.features)}
        outputs[f"feature.{i}.last"] = judgement.features[-1]
    return outputs


def named_gradients(network: nn.Module, names: Mapping[str, str]) -> Named:
    """`grad.<published name>` of every parameter that has one."""
    parameters = dict(network.named_parameters())
    found = {key: parameters[own].grad for key, own in names.items() if own in parameters}
    return {f"grad.{key}": slope.clone() for key, slope in found.items() if slope is not None}
