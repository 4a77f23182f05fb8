"""Model: what all models of the zoo are, makers of tokens and of words: modules with a config, a name and a card."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zoo.cards import ModelCard
from zoo.config import Config
from zoo.layers.constants import HasConstants
from zoo.layers.in_place import unobserved
from zoo.tokens import Source

_EVALUATING = threading.Lock()
_PAUSED: WeakKeyDictionary[Model, tuple[int, list[nn.Module]]] = WeakKeyDictionary()  # uses, and who then trains on


class Model(HasConstants):
    """A module that its config rebuilds, and that knows its name, its card and the fingerprint of its weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.name = type(self).__name__
        self.card: ModelCard | None = None
        self._fingerprint: tuple[int | None, str] | None = None
        self.register_load_state_dict_post_hook(_make_absent_constants)

    def described(self) -> dict[str, Any]:
        """What a card tells of the model itself: modality, layout, quantizer and config."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights lie; the CPU for a model without any."""
        return next((weight.device for weight in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def source(self) -> Source:
        """Name and fingerprint that what this model makes carries; the fingerprint follows changes of the weights."""
        version = self._weights_version()
        if self._fingerprint is None or version is None or self._fingerprint[0] != version:
            state = self._state()
            named = (*state.items(), *self.named_buffers())
            if absent := [name for name, value in named if isinstance(value, Tensor) and value.is_meta]:
                raise ValueError(
                    f"{self.name}: expected weights, got tensors without data (meta): {', '.join(absent[:3])}"
                )
            digest = hashlib.sha256(json.dumps(self.config.stated(), sort_keys=True).encode())
            for key in sorted(state):
                digest.update(key.encode())
                for value in tree_leaves(state[key]):
                    digest.update(_bytes_of(value))
            self._fingerprint = (version, digest.hexdigest()[:16])
        return Source(self.name, self._fingerprint[1])

    def _state(self) -> dict[str, Any]:
        """What `state_dict` gives, whose hooks put a sharded model's weights back in shards, amid a call of it even."""
        state: dict[str, Any] = {}
        for name, module in self.named_modules(remove_duplicate=False):
            module._save_to_state_dict(state, f"{name}." if name else "", keep_vars=False)
        return state

    def _weights_version(self) -> int | None:
        """A number that changes with the weights: it counts their changes in place, and where they lie.

        The weights are those of `state_dict`, which takes longer, as does `modules`. None where they tell neither, as
        those that were made in inference mode. A change in place of `weight.data` is counted nowhere.
        """
        version = 0
        waiting: list[nn.Module | None] = [self]
        try:
            while waiting:
                module = waiting.pop()
                if module is not None:
                    own, temporary = module._buffers, module._non_persistent_buffers_set
                    weights = [*module._parameters.values(), *(v for k, v in own.items() if k not in temporary)]
                    version += sum(weight._version + weight.data_ptr() for weight in weights if weight is not None)
                    waiting += module._modules.values()
        except RuntimeError:
            return None
        return version

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `half`, `cuda` ...: the model stays who it is, though its tensors are replaced."""
        known = self._fingerprint is not None and self._fingerprint[0] == self._weights_version()
        with torch.inference_mode(False):  # weights that were made in it count no changes and cannot learn
            self._replace_tensors(fn, recurse)
        if known:
            self._fingerprint = (self._weights_version(), self._fingerprint[1])  # type: ignore[index]
        return self

    def _replace_tensors(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> None:
        """What `_apply` does to the tensors; a model may keep some of them as they are."""
        super()._apply(fn, recurse)

    def compiled(self, mode: str | None = None) -> Self:
        """The same model, its networks made fast by torch.compile.

        Args:
            mode: as of torch.compile.

        Raises:
            ValueError: a model without networks of its own.
        """
        raise ValueError(f"compile: expected a tokenizer, got {self.name}")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the block, so that dropout and the like never touch a result.

        Threads may use a model at once: the last one to leave gives it its mode back.
        """
        modules = list(self.modules())
        with _EVALUATING:
            uses, training = _PAUSED.get(self) or (0, [module for module in modules if module.training])
            _PAUSED[self] = uses + 1, training
            for module in training:
                module.training = False
        try:
            with unobserved(modules):
                yield
        finally:
            with _EVALUATING:
                uses, training = _PAUSED.pop(self)
                if uses > 1:
                    _PAUSED[self] = uses - 1, training
                else:
                    for module in training:
                        module.training = True


def _bytes_of(value: object) -> Any:
    """Of what stands in a state dict: beside tensors, what modules of others keep there, as quantised ones do.

    Of weights that lie in shards on several processes it takes all, which then have to ask together.
    """
    if not isinstance(value, Tensor):
        return repr(value).encode()
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    values = whole.dequantize() if whole.is_quantized else whole.detach()
    return values.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _make_absent_constants(model: Model, _: object) -> None:
    """Weights that were assigned to a model on the meta device bring it to where they lie, with its constants."""
    if model.device.type != "meta":
        for module in model.modules():
            if isinstance(module, HasConstants):
                module.make_absent_constants(model.device)
