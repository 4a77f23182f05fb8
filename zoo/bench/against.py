"""Encoding and decoding against the original's own code, run from a checkout, with the same random weights."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo import checkpoint
from zoo.bench import exact, half, vqmodel
from zoo.bench.originals import find
from zoo.bench.originals.adapter import Original, Setting
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.registry import key_map_of, registry
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

ORIGINAL = "original"
_PARTING = 0.005  # the share of tokens that may differ, where float32 cannot tell two codes apart
_TOLERANCE = 1e-4


class Data(NamedTuple):
    ours: Tokenizer
    original: Original
    signals: Tensor
    tokens: Tokens  # random ones, in the form that the model gives these signals


@dataclass(frozen=True)
class _Against(Problem[Data]):
    """A setting of an adapter; `checkout` is where its original lies."""

    adapter: str
    setting: Setting
    device: str
    checkout: Path = field(repr=False)
    goal: bool = True

    @property
    def name(self) -> str:
        model, size = self.setting.model.partition(".")[0], " x ".join(map(str, self.setting.size))
        stated = {**self.setting.options, **self.setting.decoding}
        options = "".join(f", {value} {name}" for name, value in stated.items())
        return f"{model}, {self.setting.batch} of {size}{options}"

    def sizes(self) -> dict[str, Any]:
        return {
            "original": find(self.adapter).repository,
            **dataclasses.asdict(self.setting),
            "device": self.device,
        }

    def data(self) -> Data:
        ours, original = pair(self.adapter, self.checkout, self.setting.model, self.device)
        signals = signals_of(ours.spec, self.setting.batch, self.setting.size).to(self.device)
        tokens = ours.encode(signals, **self.setting.options)
        generator = torch.Generator().manual_seed(2)
        levels = tuple(
            torch.randint(size, level.shape, generator=generator).to(self.device)
            for size, level in zip(tokens.vocab_sizes, tokens.levels)
        )
        return Data(ours, original, signals, dataclasses.replace(tokens, levels=levels))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._our_action),
            Contender(ORIGINAL, self._their_action, "torch"),
            *half.contenders(self.device, self._in_half),
        )

    def goals(self) -> Sequence[Goal]:
        if not self.goal:
            return ()
        factor = find(self.adapter).faster[self.device]
        rounded = [Goal(name, "time", ORIGINAL, 2.0) for name in half.precisions(self.device)]
        return Goal(ZOO, "time", ORIGINAL, factor), *rounded

    def items(self) -> tuple[float, str]:
        return self.setting.batch, "signals"

    def _in_half(self, dtype: torch.dtype) -> Callable[[Data], Callable[[], Any]]:
        return lambda data: self._our_action(data._replace(ours=half.rounded(data.ours, dtype)))

    def _our_action(self, data: Data) -> Callable[[], Any]:
        raise NotImplementedError

    def _their_action(self, data: Data) -> Callable[[], Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class Encode(_Against):
    """Signals to indices."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Ours in float32 gives the original's indices, but for near ties."""
        expected, rounded = outputs[ORIGINAL], half.precisions(self.device)
        return {
            name: half.judge_tokens(found, expected) if name in rounded else judge_indices(found, expected)
            for name, found in outputs.items()
        }

    def work(self) -> Work:
        return Work(_flops(self.setting, "latent"))

    def _our_action(self, data: Data) -> Callable[[], Tensor]:
        return lambda: data.ours.encode(data.signals, **self.setting.options).indices

    def _their_action(self, data: Data) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: data.original.encode(data.signals, **self.setting.options))


@dataclass(frozen=True)
class Decode(_Against):
    """Indices to signals."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Ours in float32 gives the original's signals."""
        expected, rounded = outputs[ORIGINAL], half.precisions(self.device)
        return {
            name: half.judge_signals(found, expected)
            if name in rounded
            else exact.judge_close({"signals": (found, expected)}, _TOLERANCE)
            for name, found in outputs.items()
        }

    def work(self) -> Work:
        return Work(_flops(self.setting, "reconstruct"))

    def _our_action(self, data: Data) -> Callable[[], Tensor]:
        options = self._options(data)
        return lambda: data.ours.decode(data.tokens, **options)

    def _their_action(self, data: Data) -> Callable[[], Tensor]:
        indices, options = data.tokens.indices, self._options(data)
        return torch.no_grad()(lambda: data.original.decode(indices, **options))

    def _options(self, data: Data) -> dict[str, Any]:
        return {**data.original.conditions(data.tokens.indices), **self.setting.decoding}


def problems(case: str, device: str, *, quick: bool, originals: Mapping[str, Path]) -> list[_Against]:
    """The settings of the named adapters, of the case's modality; in quick runs the first of each, with one item."""
    kind, modality = Encode if case.startswith("encode") else Decode, "audio" if case.endswith("audio") else "image"
    found: list[_Against] = []
    for name, checkout in originals.items():
        settings = find(name).settings
        if registry.card(settings[0].model).modality != modality:
            raise ValueError(f"--original {name}: expected a model for {modality}, as `zoo bench {case}` takes")
        if quick:
            settings = (dataclasses.replace(settings[0], batch=1),)
        found += [kind(name, setting, device, checkout, not quick) for setting in settings]
    return found


def pair(adapter: str, checkout: Path, model: str, device: str) -> tuple[Tokenizer, Original]:
    """Our model and the original's with the same random weights, those the original starts with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = find(adapter).load(checkout, model)
    original.module.to(device)
    return with_weights(model, original.module).to(device), original


def with_weights(model: str, module: nn.Module) -> Tokenizer:
    """Our model of that name with the weights of an original's module, through the key map of the published files."""
    ours = zoo.create_model(model)
    state = module.state_dict()
    key_map = key_map_of(registry.family_of(ours), ours.card, state)
    if key_map is None:
        raise ValueError(f"{model}: expected a family with a published layout")
    checkpoint.load_into(ours, key_map(state))
    tokenizer: Tokenizer = ours
    return tokenizer


def signals_of(spec: InputSpec, batch: int, size: tuple[int, ...]) -> Tensor:
    """Images with something to see, or noise: (batch, C, *size) in the model's range, the same each time."""
    if spec.modality == "audio":
        return torch.rand(batch, spec.channels, *size, generator=torch.Generator().manual_seed(0)) - 0.5
    low, high = spec.value_range
    return low + (high - low) * (vqmodel.images(batch, size[0], "cpu") + 1) / 2


def judge_indices(found: Tensor, expected: Tensor) -> Verdict:
    """Whether indices are equal, but for those few where two codes are as near as float32 can tell."""
    if found.shape != expected.shape:
        return Verdict(False, f"wrong: indices of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    parted, count = int((found != expected).sum()), expected.numel()
    few = parted <= _PARTING * count
    text = f"all {count:,} tokens equal" if parted == 0 else f"{parted:,} of {count:,} tokens differ"
    return Verdict(few, text if few else f"wrong: {text}")


def _flops(setting: Setting, part: str) -> float:
    """Operations of our network, counted by torch without computing."""
    with torch.device("meta"):
        card = registry.card(setting.model)
        family = registry.family(card.family, card.module)
        model = family.model(family.config.from_dict(card.config)).eval().requires_grad_(False)
        signals = torch.empty(setting.batch, model.spec.channels, *setting.size)
        with torch.no_grad():
            given = signals if part == "latent" else torch.empty_like(model.latent(signals))
            called, options = getattr(model, part), dict(setting.decoding if part == "reconstruct" else {})
            if "size" in inspect.signature(called).parameters:
                options["size"] = setting.size
            with FlopCounterMode(display=False) as counter:
                called(given, **options)
    return float(counter.get_total_flops())
