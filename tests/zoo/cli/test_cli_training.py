"""`zoo fit`, `validate` and `convert`: config errors before any work, resuming, and the way of a run into a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_pictures import picture

import zoo
from zoo import cards, checkpoint
from zoo.cards import Manifest, ModelCard

PARITY = Path(__file__).parents[2] / "parity"
CHANGES = {"fine_channels": 8, "channels": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that takes a second, in a folder of its own."""
    folder = tmp_path_factory.mktemp("fit")
    for seed in range(4):
        picture(48, 48, seed).save(folder / f"{seed}.png")
    values = {
        "--config": "compact_photos",
        "--out": folder / "runs",
        "--data.train": folder,
        "--data.val": folder,
        "--data.size": 32,
        "--data.batch_size": 2,
        "--data.workers": 0,
        "--model.init_args.perceptual": "null",
        "--model.init_args.changes": json.dumps(CHANGES),
        "--trainer.accelerator": "cpu",
        "--trainer.precision": "32-true",
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    return [f"{key}={value}" for key, value in values.items()]


def out_of(settings: list[str]) -> Path:
    return Path(settings[1].removeprefix("--out="))


@pytest.fixture(scope="module")
def trained(settings: list[str]) -> Path:
    """The checkpoint of two steps."""
    from typer.testing import CliRunner

    from zoo.cli import app

    result = CliRunner().invoke(app, ["fit", *settings, "--trainer.max_steps=2"])
    assert result.exit_code == 0, result.output
    return out_of(settings) / "version_0" / "checkpoints" / "last.ckpt"


def test_without_a_recipe_it_says_what_to_do(run: Callable) -> None:
    for verb in ("fit", "validate"):
        stderr = run(verb, expect=1).stderr
        assert f"zoo {verb} --config RECIPE" in stderr
        assert "compact_photos" in stderr


def test_help_is_that_of_the_recipes(run: Callable) -> None:
    shown = run("fit", "--help").stdout
    assert "usage: zoo [options] fit" in shown
    assert "--trainer.max_steps" in shown
    assert "--out" in shown


@pytest.mark.parametrize(
    ("argument", "status", "told"),
    [
        ("--config=no_such_recipe", 1, "compact_photos"),
        ("--model.init_args.learnin_rate=1", 2, "learnin_rate"),
        ("--trainer.max_steps=many", 2, "many"),
        ("--modell=x", 2, "modell"),
        ("--data.train=no_such_folder", 1, "error: no images at no_such_folder"),
        ("--model.init_args.model=compact_f9", 1, "error: unknown model 'compact_f9'; nearest names: compact"),
        ("--model.init_args.changes={width: 3}", 1, "error: CompactConfig has no field width"),
        ("--ckpt_path=no_such_file", 1, "error: --ckpt_path: expected a file, or last, got no_such_file"),
        ("--trainer.accelerator=warp", 1, "warp"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_written(
    run: Callable, settings: list[str], tmp_path: Path, argument: str, status: int, told: str
) -> None:
    result = run("fit", *settings, argument, f"--out={tmp_path / 'runs'}", expect=status)
    assert told in result.stderr
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert not (tmp_path / "runs").exists()


def test_last_is_the_newest_checkpoint_of_all_runs(run: Callable, settings: list[str], trained: Path) -> None:
    run("fit", *settings, "--trainer.max_steps=4", "--ckpt_path=last")
    resumed = torch.load(trained.parents[2] / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 4
    assert resumed["optimizer_states"][0]["state"][0]["step"] == 4  # two of them from the first run
    run("validate", *settings, "--ckpt_path=last")


def test_last_without_a_run_is_refused(run: Callable, settings: list[str], tmp_path: Path) -> None:
    result = run("fit", *settings, f"--out={tmp_path}", "--ckpt_path=last", expect=1)
    assert "expected a last.ckpt" in result.stderr


def test_a_checkpoint_of_another_model_is_refused(run: Callable, settings: list[str], trained: Path) -> None:
    wider = json.dumps(CHANGES | {"channels": 16})
    result = run("validate", *settings, f"--ckpt_path={trained}", f"--model.init_args.changes={wider}", expect=1)
    assert "expected a checkpoint of the recipe's model" in result.stderr


def test_a_training_checkpoint_becomes_a_file_of_the_zoo(run: Callable, trained: Path, tmp_path: Path) -> None:
    shown = run("convert", trained, "--model", "compact_f8", "--out", tmp_path / "out").stdout
    assert "(100.00%)" in shown
    model = zoo.create_model(f"local-dir:{tmp_path / 'out'}")
    assert model.name == "compact_f8.photos"
    saved = torch.load(trained, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[f"model.{key}"]) for key, value in model.state_dict().items())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    result = run("convert", trained, "--model", "llamagen_vq_f16", "--out", tmp_path / "no", expect=1)
    assert "got one of compact_f8.photos" in result.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_stored_types_load_with_the_fingerprint_that_was_stated(
    run: Callable, tiny: Path, tmp_path: Path, dtype: str
) -> None:
    source = tiny / "model.safetensors"
    shown = run("convert", source, "--model", "compact_f8", "--out", tmp_path / dtype, "--dtype", dtype).stdout
    file = tmp_path / dtype / "model.safetensors"
    assert {value.dtype for value in checkpoint.read(file).values()} == {getattr(torch, dtype)}
    model = zoo.create_model(str(file))
    assert model.dtype == torch.float32
    assert model.source.fingerprint in shown
    assert json.loads((tmp_path / dtype / "config.json").read_text())["fingerprint"] == model.source.fingerprint
    share = float(shown.rpartition("(")[2].partition("%")[0])
    assert share == 100 if dtype == "float32" else share > 90


def test_weights_beyond_a_type_are_refused(run: Callable, tiny: Path, tmp_path: Path) -> None:
    model = zoo.create_model(f"local-dir:{tiny}")
    with torch.no_grad():
        next(model.parameters()).mul_(0).add_(1e6)
    file = zoo.save_model(model, tmp_path / "large")
    arguments = ["convert", file, "--model", "compact_f8", "--out", tmp_path / "out"]
    assert "use --dtype bfloat16" in run(*arguments, "--dtype", "float16", expect=1).stderr
    assert not (tmp_path / "out").exists()
    run(*arguments, "--dtype", "bfloat16")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in a published layout, of a small model whose card stands in the zoo."""
    from tokenizers_visual.llamagen_vq import config_from_original

    fixture = PARITY / "llamagen_vq__tiny_f16"
    module = "tokenizers_visual.llamagen_vq"
    config = config_from_original(json.loads((fixture / "meta.json").read_text())).to_dict()
    facts = {"container": "model", "licence": "test"}
    card = ModelCard("small", "test", "llamagen_vq", module, "image", "grid", "vector", config, **facts)  # type: ignore[arg-type]
    part = ModelCard("half", "test", "llamagen_vq", module, "image", "grid", "vector", config, part="decoder")
    monkeypatch.setattr(cards, "manifests", lambda: (Manifest("llamagen_vq", module, (), None, (card, part)),))
    torch.save({"model": checkpoint.read(fixture / "weights.safetensors")}, tmp_path / "published.pt")
    return tmp_path / "published.pt"


def test_a_published_checkpoint_becomes_a_file_of_the_zoo(run: Callable, published: Path, tmp_path: Path) -> None:
    assert "(100.00%)" in run("convert", published, "--model", "small", "--out", tmp_path / "out").stdout
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    original = zoo.create_model("small", checkpoint=published)
    assert zoo.create_model(f"local-dir:{tmp_path / 'out'}").encode(images) == original.encode(images)


def test_half_models_and_other_files_are_refused(run: Callable, published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "only the decoder" in run("convert", published, "--model", "half", "--out", out, expect=1).stderr
    (tmp_path / "text.pt").write_text("no weights")
    assert "text.pt" in run("convert", tmp_path / "text.pt", "--model", "small", "--out", out, expect=1).stderr
    assert "nothing.pt" in run("convert", tmp_path / "nothing.pt", "--model", "small", "--out", out, expect=1).stderr
    assert not out.exists()
