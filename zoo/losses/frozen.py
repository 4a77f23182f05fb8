"""Frozen networks inside losses: they move with their holder, but are no part of what is trained, saved or averaged."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from zoo import checkpoint, hub


class Frozen(nn.Module):
    """Holds a network outside the module tree, so that its weights are in no state dict and no optimizer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = (network.requires_grad_(False).eval(),)

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


def timm_network(name: str, weights: str | Path | None = None, **arguments: Any) -> nn.Module:
    """A pretrained network of timm, without its classifier, in eval mode.

    Args:
        name: of timm, `architecture.tag`.
        weights: a local file in timm's layout; None resolves the published file of the hub.
        arguments: of `timm.create_model`.

    Raises:
        ValueError: an unknown name, or one without published weights and no file given.
        zoo.hub.HubError: weights that cannot be had.
    """
    import timm

    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=5))
        raise ValueError(f"expected a network of timm, got {name!r}; nearest names: {near}")
    network = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    if weights is None:
        repo = network.pretrained_cfg.get("hf_hub_id")
        if not repo:
            raise ValueError(f"{name}: timm publishes no weights for it; name `architecture.tag`, or give a file")
        weights = hub.resolve(hub.WeightSource(repo=repo, file="model.safetensors"), name=name)
    state = checkpoint.read(hub.resolve(hub.WeightSource(path=str(weights)), name=name))
    own = network.state_dict()
    checkpoint.load_into(network, {key: value for key, value in state.items() if key in own})
    return network.requires_grad_(False).eval()
