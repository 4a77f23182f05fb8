"""Originals of TiTok's kin: the config handed to them, the form of their tokens, and the text they decode with."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from zoo.bench.against import judge_indices
from zoo.bench.originals import titok
from zoo.registry import registry

CODE = """
import torch
from torch import nn

class {name}(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.sizes = config["model"]["vq_model"]
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(8, 4)
        self.quantize.embedding.weight.data.uniform_(-0.001, 0.001)
        self.decoder = nn.Module()
        self.decoder.text_context_length = 77
        self.decoder.text_guidance_proj = nn.Linear(768, 1)

    def encode(self, images):
        indices = images.flatten(1).long()[:, None, : self.sizes["num_latent_tokens"]]
        return None, {{"min_encoding_indices": indices}}

    def decode_tokens(self, tokens, text=None):
        assert tokens.ndim == 3 and tokens.shape[1] == 1
        return tokens[:, 0].float() if text is None else self.decoder.text_guidance_proj(text).sum((1, 2))
"""


@dataclass(frozen=True)
class Case:
    adapter: str
    name: str  # of the original's class

    def checkout(self, folder: Path) -> Path:
        (folder / "modeling").mkdir()
        module = titok.ADAPTERS[self.adapter].module.partition(".")[2]
        (folder / "modeling" / f"{module}.py").write_text(CODE.format(name=self.name))
        return folder


CASES = [Case("titok", "TiTok"), Case("one_d_piece", "OneDPiece"), Case("tatitok", "TATiTok")]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.adapter)


@every
def test_the_config_handed_to_an_original_is_that_of_our_model(case: Case) -> None:
    for setting in titok.ADAPTERS[case.adapter].settings:
        card = registry.card(setting.model)
        family = registry.family(card.family, card.module)
        meta = {"original": {"kwargs": {"config": titok.config(setting.model)}}}
        assert family.module.config_from_original(meta) == family.config.from_dict(card.config)
        assert setting.size == (card.config["image_size"],) * 2


@every
def test_tokens_have_the_form_of_ours(case: Case, tmp_path: Path) -> None:
    adapter = titok.ADAPTERS[case.adapter]
    setting = adapter.settings[0]
    original = adapter.load(case.checkout(tmp_path), setting.model)
    assert not original.module.training
    codes = original.module.quantize.embedding.weight
    assert torch.cdist(codes, codes).fill_diagonal_(torch.inf).min() > 0.01  # no two are the same to float32
    tokens = registry.card(setting.model).config["num_tokens"]
    images = torch.arange(3 * 16 * 16.0).expand(2, -1).view(2, 3, 16, 16)
    indices = original.encode(images)
    assert judge_indices(indices, torch.arange(tokens).expand(2, -1)).passed
    decoded = original.decode(indices, **original.conditions(indices))
    assert len(decoded) == 2


def test_text_is_the_same_on_both_sides_and_each_time(tmp_path: Path) -> None:
    case = CASES[-1]
    adapter = titok.ADAPTERS[case.adapter]
    original = adapter.load(case.checkout(tmp_path), adapter.settings[0].model)
    indices = torch.zeros(2, 32, dtype=torch.int64)
    text = original.conditions(indices)["text"]
    assert text.shape == (2, 77, 768)
    assert torch.equal(text, original.conditions(indices)["text"])
    assert not torch.equal(text[0], text[1])
    first = original.decode(indices, text=text)
    assert torch.equal(first, original.decode(indices, **original.conditions(indices)))
    assert not torch.equal(first, original.decode(indices, text=text + 1))
