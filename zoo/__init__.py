"""One zoo for discrete tokenizers: images and audio to a few integers and back, behind one contract.

model = zoo.create_model("llamagen_vq_f16", pretrained=True)
tokens = model.encode(images)
images = model.decode(tokens)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it; imported on first use, so that listing models needs no torch
_LAZY = {
    "Config": "zoo.config",
    "ConfigError": "zoo.config",
    "CheckpointError": "zoo.checkpoint",
    "KeyMap": "zoo.checkpoint",
    "HubError": "zoo.hub",
    "InputSpec": "zoo.tokenizer",
    "ModelCard": "zoo.cards",
    "Output": "zoo.tokenizer",
    "Quality": "zoo.adaptive",
    "Quantized": "zoo.quantizers",
    "Quantizer": "zoo.quantizers",
    "Tokenizer": "zoo.tokenizer",
    "Tokens": "zoo.tokens",
    "UnknownModelError": "zoo.registry",
    "create_model": "zoo.registry",
    "list_models": "zoo.registry",
    "load_model": "zoo.registry",
    "refine": "zoo.refinement",
    "register": "zoo.registry",
    "save_model": "zoo.registry",
}
_MODULES = {
    "bpe",
    "cards",
    "checkpoint",
    "hub",
    "interop",
    "media",
    "metrics",
    "losses",
    "ops",
    "quantizers",
    "layers",
    "parity",
    "tokens",
}

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "HubError",
    "InputSpec",
    "KeyMap",
    "ModelCard",
    "Output",
    "Quality",
    "Quantized",
    "Quantizer",
    "Tokenizer",
    "Tokens",
    "UnknownModelError",
    "bpe",
    "cards",
    "checkpoint",
    "create_model",
    "hub",
    "interop",
    "layers",
    "list_models",
    "load_model",
    "losses",
    "media",
    "metrics",
    "ops",
    "parity",
    "quantizers",
    "refine",
    "register",
    "save_model",
    "tokens",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_MODULES])


if TYPE_CHECKING:
    from zoo import bpe, cards, checkpoint, hub, interop, losses, media, metrics, ops, parity, quantizers, tokens
    from zoo.adaptive import Quality
    from zoo.cards import ModelCard
    from zoo.checkpoint import CheckpointError, KeyMap
    from zoo.config import Config, ConfigError
    from zoo.hub import HubError
    from zoo.quantizers import Quantized, Quantizer
    from zoo.refinement import refine
    from zoo.registry import (
        UnknownModelError,
        create_model,
        list_models,
        load_model,
        register,
        save_model,
    )
    from zoo.tokenizer import InputSpec, Output, Tokenizer
    from zoo.tokens import Tokens
