"""Comparison with originals: their code runs from a checkout, on equal weights, and only equal results are timed."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import audio
from zoo.bench import half, originals, report
from zoo.bench.originals.adapter import PACKAGES, Adapter, Original, Setting
from zoo.bench.problem import problems
from zoo.checkpoint import KeyMap
from zoo.cli import app
from zoo.config import Config
from zoo.quantizers import QuantizerConfig, VectorConfig
from zoo.registry import Family, key_map_of, registry
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

# -- a family and the code of its "original" -----------------------------------------------------------------------


@dataclass(frozen=True)
class ToyConfig(Config):
    quantizer: QuantizerConfig = VectorConfig(codebook_size=16, dim=4)


class Toy(Tokenizer):
    """Patches of 8 x 8 pixels, one code each."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config, InputSpec("image", 3, (0.0, 1.0), multiple=8), config.quantizer)
        self.encoder = nn.Conv2d(3, 4, 8, stride=8)
        self.decoder = nn.ConvTranspose2d(4, 3, 8, stride=8)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))


KEY_MAP = KeyMap({"enc.*": "encoder.*", "dec.*": "decoder.*", "book.weight": "quantizer.codebook.weight"})

CODE = """
import torch
from torch import nn
from utils.nearest import nearest

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Conv2d(3, 4, 8, stride=8)
        self.dec = nn.ConvTranspose2d(4, 3, 8, stride=8)
        self.book = nn.Embedding(16, 4)

    def encode(self, x):
        return nearest(self.enc(x), self.book.weight)

    def decode(self, indices):
        return self.dec(self.book(indices).movedim(-1, 1))
"""
NEAREST = """
import torch

def nearest(z, book):
    z = z.movedim(1, -1)
    return torch.cdist(z.flatten(0, -2), book).argmin(1).view(z.shape[:-1])
"""


def checkout(folder: Path, code: str = CODE, nearest: str = NEAREST) -> Path:
    (folder / "network").mkdir(parents=True)
    (folder / "utils").mkdir()
    (folder / "network" / "model.py").write_text(code)
    (folder / "utils" / "nearest.py").write_text(nearest)
    return folder


def build(model: str) -> Original:
    import importlib

    module = importlib.import_module("network.model").Net().eval()
    return Original(module, module.encode, module.decode)


TOY = Adapter("someone/toy", "network.model", (Setting("toy", 2, (32, 32)),), build, {"cpu": 1.0, "cuda": 1.0})


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._families, "toy", Family("toy", Toy, ToyConfig))
    monkeypatch.setitem(originals.ADAPTERS, "toy", TOY)


def bench(*arguments: object, expect: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments), "--quick", "--device", "cpu"])
    assert result.exit_code == expect, result.stdout + result.stderr
    return result


# -- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["encode", "decode", "tokenize"])
def test_an_original_is_timed_beside_ours(case: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    bench(case, "--original", f"toy={checkout(tmp_path / 'toy')}", "--json", file)
    (record,) = report.read(file)
    assert record["passed"]
    assert str(tmp_path) not in file.read_text()  # where things lie here is nobody's business
    assert "someone/toy" in json.dumps(record["sizes"])
    results = {result["contender"]: result for result in record["results"]}
    assert next(iter(results)) == "zoo"
    assert results["original"]["wall_seconds"] > 0
    rounded = results.get("zoo, bfloat16")
    assert (rounded is not None) == bool(half.precisions("cpu"))
    if rounded is not None and case != "decode":
        assert 0.5 <= rounded["agreement"] <= 1
        assert f"{100 * rounded['agreement']:.1f} % of the tokens as in float32" in rounded["gate"]


def test_goals_name_contenders() -> None:
    for case in ("encode", "decode", "tokenize"):
        for device in ("cpu", "cuda"):
            (problem,) = problems(case, device, quick=False, originals={"toy": Path("anywhere")})
            contenders = {contender.name for contender in problem.contenders()}
            assert problem.goals()
            assert all({goal.contender, goal.peer} <= contenders for goal in problem.goals())


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("encode", "argmin(1)", "argmax(1)"),
        ("encode", ".view(z.shape[:-1])", ".view(len(z), -1)"),
        ("tokenize", "argmin(1)", "argmax(1)"),
    ],
)
def test_other_tokens_are_refused(case: str, old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    folder = checkout(tmp_path / "toy", nearest=NEAREST.replace(old, new))
    stderr = bench(case, "--original", f"toy={folder}", "--json", file, expect=1).stderr
    assert "no times where results differ" in stderr
    assert "wrong: " in stderr
    (record,) = report.read(file)
    assert not record["passed"]
    assert not any("wall_seconds" in result for result in record["results"])


def test_another_image_is_refused(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "toy", CODE.replace("return self.dec(", "return 1.001 * self.dec("))
    stderr = bench("decode", "--original", f"toy={folder}", expect=1).stderr
    assert "zoo wrong: signals is off by 1.0e-03 (allowed: 1e-04)" in stderr


class Captioned(Toy):
    """Decoding adds what stands in the text to the image."""

    decode_options = frozenset({"text"})

    def decode_codes(self, codes: Tensor, tokens: Tokens, *, text: Tensor | None = None, **options: Any) -> Tensor:
        return super().decode_codes(codes, tokens, **options) + (0 if text is None else text[:, None, None, None])


@pytest.mark.parametrize("heard", [True, False])
def test_both_sides_decode_under_the_same_conditions(
    heard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_captioned(model: str) -> Original:
        plain = build(model)

        def decode(indices: Tensor, text: Tensor) -> Tensor:
            return plain.decode(indices) + (text[:, None, None, None] if heard else 0)

        def conditions(indices: Tensor) -> dict[str, Tensor]:
            return {"text": torch.arange(1.0, 1 + len(indices))}

        return replace(plain, decode=decode, conditions=conditions)

    monkeypatch.setitem(registry._families, "toy", Family("toy", Captioned, ToyConfig))
    monkeypatch.setitem(originals.ADAPTERS, "toy", replace(TOY, build=build_captioned))
    result = bench("decode", "--original", f"toy={checkout(tmp_path / 'toy')}", expect=0 if heard else 1)
    assert ("zoo wrong: signals is off" in result.stderr) is not heard


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_path_that_is_no_checkout_is_refused(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    if there:
        folder.mkdir()
    stderr = bench("encode", "--original", f"toy={folder}", expect=1).stderr
    assert f"{folder}: expected a checkout of someone/toy, with network/model in it" in " ".join(stderr.split())


@pytest.mark.parametrize(
    ("module", "package"), [("no_such_library", "no_such_library"), ("lib_x.part", "lib_x"), ("lib_y", "library-y")]
)
def test_a_missing_library_is_named(module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "lib_y", "library-y")  # as others whose package has another name
    folder = checkout(tmp_path / "toy", f"import {module}\n{CODE}")
    stderr = " ".join(bench("encode", "--original", f"toy={folder}", expect=1).stderr.split())
    assert f"someone/toy needs {module.partition('.')[0]}, which is not installed: pip install {package}" in stderr


def test_a_library_that_has_changed_is_told(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "toy", f"from torch import no_such_function\n{CODE}")
    stderr = bench("encode", "--original", f"toy={folder}", expect=1).stderr
    assert "someone/toy cannot use the installed libraries: cannot import name 'no_such_function'" in stderr


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "toy", CODE.replace("self.book", "self.codes"))
    stderr = bench("encode", "--original", f"toy={folder}", expect=1).stderr
    assert "codes.weight" in stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["encode", "--original", "toy"], "expected NAME=PATH, got 'toy'"),
        (["encode", "--original", "toi=."], "unknown name 'toi'; nearest names: toy"),
        (["quantize", "--original", "toy=."], "expected one of the cases encode, decode"),
        (["encode-audio", "--original", "toy=."], "toy: expected a model for audio"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], told: str) -> None:
    assert told in " ".join(bench(*arguments, expect=1).stderr.split())


# -- the adapters --------------------------------------------------------------------------------------------------


def test_two_checkouts_do_not_meet_and_leave_nothing_behind(tmp_path: Path) -> None:
    before, path = dict(sys.modules), list(sys.path)
    ours = checkout(tmp_path / "one")
    (ours / "audio.py").write_text("raise RuntimeError('not ours')")
    others = checkout(tmp_path / "two", CODE.replace("nn.Embedding(16, 4)", "nn.Embedding(17, 4)"))
    models = [TOY.load(folder, "toy").module for folder in (ours, others)]
    assert [len(module.book.weight) for module in models] == [16, 17]
    assert sys.path == path
    assert sys.modules["audio"] is audio
    assert not {"network", "network.model", "utils", "utils.nearest"} & (set(sys.modules) - set(before))


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = list(sys.path)
    with pytest.raises(ValueError, match="no_such_library"):
        TOY.load(checkout(tmp_path / "toy", CODE + "import no_such_library"), "toy")
    assert sys.path == path
    assert "network.model" not in sys.modules


def test_an_adapter_is_found_by_the_name_of_one_of_its_models() -> None:
    (setting,) = originals.find("titok_b64").settings
    assert setting.model == "titok_b64.imagenet"
    assert len(originals.find("titok").settings) > 1


def test_every_adapter_names_models_of_the_zoo() -> None:
    for name, adapter in originals.ADAPTERS.items():
        assert set(adapter.faster) == {"cpu", "cuda"}, name
        for setting in adapter.settings:
            card = registry.card(setting.model)
            assert card.modality == registry.card(adapter.settings[0].model).modality
            assert key_map_of(registry.family(card.family, card.module), card, []) is not None, name


# -- how half precision is judged ----------------------------------------------------------------------------------


def test_agreement_is_the_share_of_equal_tokens() -> None:
    expected = torch.arange(10)
    assert half.judge_tokens(expected, expected).agreement == 1
    verdict = half.judge_tokens(torch.where(expected < 3, 0, expected), expected)
    assert (verdict.passed, verdict.agreement) == (True, pytest.approx(0.8))
    assert not half.judge_tokens(expected + 1, expected).passed
    assert not half.judge_tokens(expected[:5], expected).passed


def test_decoded_signals_must_be_near() -> None:
    expected = torch.randn(100)
    assert half.judge_signals(expected.bfloat16(), expected).passed
    for wrong in (expected * 1.2, torch.full((100,), torch.nan), expected[:50]):
        assert not half.judge_signals(wrong, expected).passed


def test_a_rounded_model_takes_the_tokens_of_the_model() -> None:
    model = Toy(ToyConfig()).eval()
    twin = half.rounded(model, torch.bfloat16)
    assert (twin.dtype, model.dtype) == (torch.bfloat16, torch.float32)
    tokens = model.encode(torch.rand(1, 3, 16, 16))
    assert twin.decode(tokens).dtype == torch.bfloat16
