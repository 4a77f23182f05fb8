"""Originals of ALIT, KARL, FlexTok and Instella-T2I: how they are called, and what they are given."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.bench import originals
from zoo.bench.against import Decode
from zoo.bench.originals.adapter import Original, Setting
from zoo.registry import registry

ROLLED = """
from pathlib import Path
from typing import Any
import sys

sys.path.append("parts/")  # and files are named from the checkout's root
from quantizer import Quantizer
import torch
from torch import nn

SCALE = float(Path("scale.txt").read_text())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantize = Quantizer()
        self.latent_tokens = nn.Parameter(torch.zeros(32, 4))
        self.calls = 0

    def forward(self, images, *arguments):
        for step in range(8):
            self.calls += 1
            tokens = torch.full((len(images), 32 * (step + 1)), step, device=images.get_device())
            self.quantize(tokens)
        return SCALE

    encode = forward

def build(base, **stage):
    assert base["pretrained_ckpt_path"] is None and stage["train_stage"] != "full_finetuning"
    return Net()

alit_small = karl_small = build
"""
QUANTIZER = """
from torch import nn

class Quantizer(nn.Module):
    def forward(self, tokens):
        return tokens, {"min_encoding_indices": tokens}
"""


def rolled(folder: Path, package: str, quantizer: str = QUANTIZER) -> Path:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(ROLLED)
    (folder / "parts").mkdir()
    (folder / "parts" / "quantizer.py").write_text(quantizer)
    (folder / "scale.txt").write_text("2")
    return folder


def load(name: str, folder: Path) -> Original:
    adapter = originals.find(name)
    return adapter.load(folder, adapter.settings[0].model)


@pytest.mark.parametrize("num_tokens", [32, 96, 256])
def test_alit_runs_up_to_the_roll_out_that_is_asked_for(num_tokens: int, tmp_path: Path) -> None:
    original = load("alit", rolled(tmp_path, "adaptive_tokenizers"))
    indices = original.encode(torch.zeros(2, 3, 8, 8), num_tokens=num_tokens)
    assert indices.shape == (2, num_tokens)
    assert original.module.calls == num_tokens // 32
    assert original.module.train_stage == "full_finetuning"
    with pytest.raises(RuntimeError, match="expected 9 calls of the quantizer, got 8"):
        original.encode(torch.zeros(2, 3, 8, 8), num_tokens=288)
    assert not original.module.quantize._forward_hooks
    assert torch.zeros(1).get_device() == -1  # as it was


def test_karl_stops_before_it_decodes(tmp_path: Path) -> None:
    original = load("karl", rolled(tmp_path, "kolmogorov_tokenizers"))
    original.encode(torch.zeros(2, 3, 8, 8), num_tokens=256)
    assert original.module.calls == 1


def test_checkouts_with_paths_from_their_roots_do_not_meet(tmp_path: Path) -> None:
    folder, path = Path.cwd(), list(sys.path)
    first = load("alit", rolled(tmp_path / "one", "adaptive_tokenizers"))
    other = QUANTIZER.replace("return tokens, ", "return -tokens, ")
    second = load("karl", rolled(tmp_path / "two", "kolmogorov_tokenizers", other))
    ones = torch.ones(1)
    assert [model.module.quantize(ones)[0].item() for model in (first, second)] == [1, -1]
    assert (Path.cwd(), sys.path) == (folder, path)
    assert "quantizer" not in sys.modules


# -- Instella-T2I --------------------------------------------------------------------------------------------------

ATTENTION = "_flash_attention_forward = None"
BINARY = """
import torch
from torch import nn
import bae.llama_attn as attention

class BAE_Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.attention = config, attention

    def encode(self, images):
        values = images.flatten(1)[:, : self.config.num_latent_tkns, None]
        return None, None, {"binary_code": (values > torch.arange(self.config.codebook_size)) * 1.0}

    def decode(self, bits, height, width):
        return bits
"""


def test_instella_takes_our_sizes_and_gives_our_tokens(tmp_path: Path) -> None:
    (tmp_path / "bae").mkdir()
    (tmp_path / "bae" / "llama_attn.py").write_text(ATTENTION)
    (tmp_path / "bae" / "ae_model.py").write_text(BINARY)
    original = load("instella_t2i", tmp_path)
    card = registry.card(originals.find("instella_t2i").settings[0].model)
    family = registry.family(card.family, card.module)
    config: Any = family.config.from_dict(card.config)
    meta = {"original": {"kwargs": {"config": original.module.config}}}
    assert family.module.config_from_original(meta) == config
    quantizer = config.quantizer.build()
    images = torch.arange(768.0).view(1, 3, 16, 16).expand(2, -1, -1, -1)
    indices = original.encode(images)
    bits = original.decode(indices)
    assert torch.equal(bits, original.module.encode(images)[2]["binary_code"])
    torch.testing.assert_close(quantizer.indices_to_codes(*indices.unbind(1)), bits @ quantizer.embedding.detach())
    q, k, v = torch.randn(3, 2, 5, 4, 8)
    found = original.module.attention._flash_attention_forward(q, k, v, None, 5, is_causal=False)
    weights = torch.einsum("bihc,bjhc->bhij", q, k).div(8**0.5).softmax(-1)
    torch.testing.assert_close(found, torch.einsum("bhij,bjhc->bihc", weights, v))


# -- FlexTok -------------------------------------------------------------------------------------------------------

PARTS = {
    "vae_wrapper": "StableDiffusionVAE", "regularizers.quantize_fsq": "FSQ", "flow_matching.pipelines": "MinRFPipeline",
    "model.utils.dict_ops": "PerSampleOp", "model.utils.posembs": "PositionalEmbeddingAdder",
    "model.utils.wrappers": "SequentialModuleDictWrapper", "model.preprocessors.patching": "PatchEmbedder",
    "model.preprocessors.registers": "Registers1D", "model.preprocessors.flex_seq_packing": "BlockWiseSequencePacker",
    "model.preprocessors.linear": "LinearLayer", "model.preprocessors.token_dropout": "MaskedNestedDropout",
    "model.preprocessors.nullcond": "LearnedNullCond", "model.preprocessors.time_embedding": "TimestepEmbedder",
    "model.trunks.transformers": "FlexTransformer", "model.postprocessors.seq_unpacking": "SequenceUnpacker",
    "model.postprocessors.heads": "LinearHead",
}  # fmt: skip
PART = """
import torch
from torch import nn

channels_first_to_last = channels_last_to_first = None

class {name}(nn.Module):
    downsample_factor = 8

    def __init__(self, *arguments, **options):
        super().__init__()
        self.arguments, self.options = arguments, options
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))

ToPatchesLinearHead = {name}
"""
WRAPPER = """
from torch import nn

class FlexTok(nn.Module):
    def __init__(self, vae, encoder, decoder, regularizer, noise, pipeline):
        super().__init__()
        self.vae, self.encoder, self.decoder = vae, encoder, decoder
        self.pipeline = pipeline(model=decoder)

    def tokenize(self, images):
        return [image.flatten(1)[:, :4].long() for image in images.split(1)]

    def _prepare_data_dict_for_detokenization(self, ids):
        return {"quants": ids}

    def decode(self, data, steps, **options):
        self.steps, self.options = steps, options
        data["rgb"] = [noise * steps for noise in data["noise"]]
"""


def flextok(folder: Path) -> Original:
    for place, name in PARTS.items():
        file = folder.joinpath("flextok", *place.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PART.format(name=name))
    (folder / "flextok" / "flextok_wrapper.py").write_text(WRAPPER)
    return load("flextok", folder)


def test_flextok_decodes_from_the_same_noise_on_both_sides(tmp_path: Path) -> None:
    original = flextok(tmp_path)
    indices = original.encode(torch.zeros(2, 3, 256, 256))
    assert indices.shape == (2, 4)
    conditions = original.conditions(indices)
    assert torch.equal(conditions["noise"], original.conditions(indices)["noise"])
    assert conditions["noise"].shape == (2, 16, 32, 32)
    decoded = original.decode(indices, steps=3, **conditions)
    assert torch.equal(decoded, 3 * conditions["noise"])
    assert original.module.options["guidance_scale"] == conditions["guidance_scale"] > 1
    assert original.module.options["perform_norm_guidance"]
    card = registry.card("flextok_d12_d12.in1k")
    model = registry.family(card.family, card.module).model
    (setting,) = originals.find("flextok").settings
    assert {*conditions, *setting.decoding} <= model.decode_options


def test_flextok_has_no_weights_of_zero(tmp_path: Path) -> None:
    original = flextok(tmp_path)
    values = {name: bool(value.any()) for name, value in original.module.named_parameters()}
    assert all(found == name.endswith("weight") for name, found in values.items())
    assert values


def test_options_of_decoding_are_told_and_reach_both_sides(tmp_path: Path) -> None:
    problem = Decode("flextok", Setting("flextok_d12_d12.in1k", 1, (256, 256), decoding={"steps": 3}), "cpu", tmp_path)
    assert problem.name == "flextok_d12_d12, 1 of 256 x 256, 3 steps"
    assert problem.sizes()["decoding"] == {"steps": 3}
    given: list[dict[str, object]] = []

    def decode(tokens: Tensor, **options: object) -> Tensor:
        given.append(options)
        return tokens

    class Model:
        def decode(self, tokens: Tensor, **options: object) -> Tensor:
            return decode(tokens, **options)

    class Data:
        ours = Model()
        original = Original(torch.nn.Identity(), decode, decode, lambda indices: {"noise": 7})

        class tokens:
            indices = torch.zeros(1, 4)

    problem._our_action(Data)()  # type: ignore[arg-type]
    problem._their_action(Data)()  # type: ignore[arg-type]
    assert given == [{"noise": 7, "steps": 3}] * 2


def test_the_limit_is_that_of_the_size_and_the_options_that_are_measured(tmp_path: Path) -> None:
    def flops(model: str, side: int = 256, **decoding: object) -> float:
        return Decode("", Setting(model, 1, (side, side), decoding=decoding), "cpu", tmp_path).work().flops

    one, two, three = (flops("flextok_d12_d12.in1k", steps=steps) for steps in (1, 2, 4))
    assert three - two == 2 * (two - one) > 0
    assert flops("instella_t2i_bae.amd", 512) > 2 * flops("instella_t2i_bae.amd")  # the tokens are as many
    assert flops("tatitok_bl32_vq.datacomp") > 0
