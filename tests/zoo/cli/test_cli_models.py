"""`zoo list`, `info` and `download`: what the zoo holds, quickly and truly."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import cards
from zoo.cards import Manifest, ModelCard
from zoo.hub import WeightSource

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"], ["compare", "--help"]])
def test_it_starts_fast_and_without_torch(arguments: list[str]) -> None:
    program = "import atexit, sys; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); "
    program += "from zoo.cli import main; main()"
    seconds = []
    for _ in range(2):  # the first run may have to compile
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5
    loaded = done.stderr.splitlines()[-1]
    assert "'zoo.cli'" in loaded
    assert "'torch'" not in loaded
    assert "'numpy'" not in loaded


def test_list_shows_every_model_once(run: Callable) -> None:
    shown = run("list").stdout
    for card in cards.all_cards():
        assert card.full_name in shown


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (["*vq*"], lambda card: "vq" in card.full_name + card.family),
        (["--quantizer", "binary"], lambda card: card.quantizer == "binary"),
        (["--licence", "nvidia"], lambda card: "NVIDIA" in card.licence),
        (["--pretrained"], lambda card: card.source is not None),
        (["--no-pretrained"], lambda card: card.source is None),
        (["--modality", "image", "--layout", "grid"], lambda card: (card.modality, card.layout) == ("image", "grid")),
    ],
)
def test_list_filters(run: Callable, arguments: list[str], holds: Callable[[ModelCard], bool]) -> None:
    listed = {entry["full_name"] for entry in json.loads(run("list", "--json", *arguments).stdout)}
    assert listed == {card.full_name for card in cards.all_cards() if holds(card)}


def test_list_without_a_match_says_so(run: Callable) -> None:
    result = run("list", "no_such_model")
    assert result.stdout == ""
    assert "no model matches" in result.stderr
    assert json.loads(run("list", "no_such_model", "--json").stdout) == []


# the rows of one concept, or a method without any
FEW_WEIGHTS = {"batex", "decor", "freedom", "pixelbytes", "textual_inversion"}


@pytest.mark.parametrize("name", [card.full_name for card in cards.all_cards()])
def test_info_tells_of_every_model(run: Callable, name: str) -> None:
    facts = json.loads(run("info", name, "--json").stdout)
    assert facts["full_name"] == name
    assert facts["parameters"] > 1e5 or facts["family"] in FEW_WEIGHTS
    if facts["layout"] == "words":  # of a projector, which has no vocabulary
        assert "vocab_sizes" not in facts
    elif facts["modality"] == "image":
        widths = [(size - 1).bit_length() for size in facts["vocab_sizes"]]
        if len(set(widths)) == 1:
            assert facts["example"]["bits"] == facts["example"]["tokens"] * widths[0]
        else:  # of as many positions each
            assert facts["example"]["bits"] * len(widths) == facts["example"]["tokens"] * sum(widths)


def test_info_shows_licence_metrics_and_protocol(run: Callable) -> None:
    shown = run("info", "maskbit_lfq_12bit").stdout
    for text in (
        "non-commercial",
        "2409.16211",
        "rFID",
        "1.52",
        "ImageNet validation",
        "256 for an image of 256 x 256",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("name", "told"), [("taming_vqgan_f16_1024.ffhq", True), ("movq", True), ("movq_f8_16384", False)]
)
def test_info_says_where_the_sizes_come_from(run: Callable, name: str, told: bool) -> None:
    assert ("those that the shapes in the weights tell" in " ".join(run("info", name).stdout.split())) == told


def test_info_of_a_saved_model_counts_its_own_parameters(run: Callable, tiny: Path) -> None:
    import zoo

    model = zoo.create_model(f"local-dir:{tiny}")
    facts = json.loads(run("info", tiny, "--json").stdout)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["config"]["channels"] == 8


def test_an_unknown_name_gives_one_line_with_the_nearest(run: Callable) -> None:
    stderr = run("info", "llamagen_f16", expect=1).stderr
    assert stderr.startswith("error: unknown model 'llamagen_f16'")
    assert "llamagen_vq_f16" in stderr
    assert "Traceback" not in stderr
    assert "Traceback" in run("--debug", "info", "llamagen_f16", expect=1).stderr
    assert "Traceback" not in run("info", "llamagen_f16", expect=1).stderr


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a model with a local weight file, and given facts, into the zoo."""

    def publish(**facts: object) -> Path:
        path = tmp_path / "weights.bin"
        path.write_bytes(b"the weights")
        source = WeightSource(path=str(path), **{k: facts.pop(k) for k in ("sha256", "size") if k in facts})  # type: ignore[arg-type]
        module = "tokenizers_visual.compact"
        card = ModelCard("mine", "v1", "compact", module, "image", "grid", "finite_scalar", {}, source, **facts)  # type: ignore[arg-type]
        monkeypatch.setattr(cards, "manifests", lambda: (Manifest("compact", module, (), None, (card,)),))
        return path

    return publish


def test_download_prints_where_the_file_lies_and_its_hash(run: Callable, weights: Callable[..., Path]) -> None:
    digest = hashlib.sha256(b"the weights").hexdigest()
    path = weights(sha256=digest)
    shown = run("download", "mine").stdout
    assert str(path) in shown
    assert f"sha256 {digest} (as the manifest states)" in shown
    weights()
    assert "states none" in run("download", "mine.v1").stdout


def test_download_refuses_another_file(run: Callable, weights: Callable[..., Path]) -> None:
    weights(sha256="0" * 64)
    result = run("download", "mine", expect=1)
    assert "expected sha256 0000" in result.stderr
    assert result.stdout == ""


def test_download_asks_once_for_non_commercial_licences(run: Callable, weights: Callable[..., Path]) -> None:
    path = weights(non_commercial=True, licence="research only")
    assert "--accept-licence" in run("download", "mine", expect=1).stderr
    assert str(path) in run("download", "mine", "--accept-licence").stdout
    assert str(path) in run("download", "mine").stdout


def test_download_of_a_model_without_weights_is_refused_before_others_start(run: Callable) -> None:
    assert "nearest names" in run("download", "compact_f8", "no_such_model", expect=1).stderr
