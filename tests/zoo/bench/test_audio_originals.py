"""Audio originals: settings that no side pads and, where their packages are installed, results on our weights."""

import importlib.util
from pathlib import Path

import pytest
import torch

from zoo.bench.against import Decode, Encode
from zoo.bench.originals.audio import ADAPTERS
from zoo.registry import registry

every = pytest.mark.parametrize("name", ADAPTERS)


@every
def test_settings_are_of_whole_frames_and_of_options_that_our_model_takes(name: str) -> None:
    for setting in ADAPTERS[name].settings:
        card = registry.card(setting.model)
        family = registry.family(card.family, card.module)
        with torch.device("meta"):
            model = family.model(family.config.from_dict(card.config))
        assert setting.size[0] % model.spec.multiple == 0
        assert set(setting.options) <= model.encode_options
        assert setting.options.get("num_codebooks", 1) <= len(model.vocab_sizes)


@pytest.mark.slow
@every
def test_originals_give_our_tokens_and_samples(name: str) -> None:
    package = ADAPTERS[name].module.partition(".")[0]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    for kind in (Encode, Decode):
        problem = kind(name, ADAPTERS[name].settings[0], "cpu", Path(found.origin).parents[1])
        data = problem.data()
        outputs = {contender.name: contender.build(data)() for contender in problem.contenders()}
        verdicts = problem.gate(data, outputs)
        assert verdicts["zoo"].passed, verdicts["zoo"].text
