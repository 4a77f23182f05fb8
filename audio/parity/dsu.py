"""Checks of the fixtures of speech units: a speech model of transformers with given weights, units, runs, k-means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audio.dsu import DSU, DSUConfig, Runs, mean_squared_distance, of_centres
from audio.speech_features import HiddenStates, HiddenStatesConfig
from zoo.ops import kmeans, nearest_code
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return DSUCase(fixture)


class DSUCase(Case):
    """Audio is (1, T); the speech model's weights are named as in transformers, `centers` (K, D) the units'."""

    def __init__(self, fixture: Fixture) -> None:
        self.fixture, self.meta = fixture, fixture.meta

    def units(self, settings: dict[str, Any]) -> DSU:
        """The units on the features that a check asks for."""
        layer = None if settings["layer"] == "avg" else settings["layer"]
        values = self.fixture.weights["centers"]
        features = HiddenStatesConfig(values.shape[1], layer, settings["normalize"])
        model = of_centres(DSUConfig(features, quantizer=DSUConfig().quantizer.replace(dim=values.shape[1])), values)
        self.source(model).use(self.speech_model())
        return model

    def source(self, model: DSU) -> HiddenStates:
        """Where the units take their features from."""
        if not isinstance(model.features, HiddenStates):
            raise ValueError(f"expected features of a speech model, got {type(model.features).__name__}")
        return model.features

    def speech_model(self) -> Any:
        """The model of transformers that the fixture names, with its weights."""
        import transformers

        name, kwargs = self.meta["original"]["class"], self.meta["original"]["kwargs"]
        config = getattr(transformers, name.replace("Model", "Config"))(**kwargs)
        model = getattr(transformers, name)(config)
        named = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        state = {}
        for key, value in self.fixture.weights.items():
            if key.startswith("model."):
                place, _, last = key.removeprefix("model.").rpartition(".")
                state[f"{place}.{named.get(last, last)}" if place else last] = value
        model.load_state_dict(state)
        return model

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model, audio = self.units(settings), inputs["audio"][:, None]
        with torch.no_grad():  # loud clips included, which `encode` would refuse
            latent = model.latent(audio)
            (units,) = model.quantizer(latent).levels
        runs = Runs.of(units[0])
        distance = mean_squared_distance(latent[0], self.fixture.weights["centers"])
        return {
            "indices": units,
            "latent": latent,
            "dedup": runs.units,
            "durations": runs.durations,
            "starts": runs.starts,
            "codepoints": torch.tensor([ord(character) for character in runs.text()]),
            "input_values": self.source(model).prepared(inputs["audio"][0])[None],
            "mean_squared_distance": torch.tensor(distance),
        }

    def features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self.units(settings).latent(inputs["audio"][:, None])}

    def kmeans_fit(self, inputs: Named, settings: dict[str, Any]) -> Named:
        data: Tensor = inputs["data"].double()
        start = inputs["init"].double()
        found, _ = kmeans(data, len(start), iterations=settings["iterations"], init=start)
        labels = nearest_code(data, found)
        inertia = (data - found[labels]).square().sum()
        return {"centers": found, "indices": labels, "inertia": inertia}
