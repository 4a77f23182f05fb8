"""`zoo fit`: a run on real files learns, logs, draws, checkpoints, resumes and exports."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import trainers
import zoo
from trainers.recipes import CONFIGS, find_recipe
from zoo.cli.training import run

TINY = "{patch_size: 4, fine_channels: 16, channels: 16, encoder_blocks: [1, 1], decoder_blocks: [1, 1]}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    for i, photo in enumerate(load_sample_images().images):
        for j in range(4):
            crop = photo[j * 60 : j * 60 + 160, j * 90 : j * 90 + 200]
            Image.fromarray(crop).save(folder / f"photo_{i}_{j}.png")
    return folder


def fit(photos: Path, out: Path, *arguments: str) -> None:
    run(
        "fit",
        [
            "--config=compact_photos", f"--data.init_args.train={photos}", f"--data.init_args.val={photos}",
            "--data.init_args.size=64", "--data.init_args.batch_size=4", "--data.init_args.workers=0",
            f"--model.init_args.changes={TINY}", "--model.init_args.perceptual=null",
            "--model.init_args.warmup_steps=2",
            "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.check_val_every_n_epoch=2",
            "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", f"--out={out}", *arguments,
        ],
    )  # fmt: skip


def metrics(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    fit(photos, out, "--trainer.max_steps=40")
    return out / "version_0"


def test_it_learns(finished: Path) -> None:
    losses = metrics(finished, "train/reconstruction")
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert metrics(finished, "val/psnr")[-1] > metrics(finished, "val/psnr")[0] + 2
    assert 1 < metrics(finished, "val/perplexity")[-1] <= 64000


def test_it_logs_and_draws(finished: Path) -> None:
    assert list(finished.glob("events.out.tfevents.*"))
    pictures = sorted(finished.glob("reconstructions/step_*.png"))
    assert len(pictures) >= 2
    grid = np.asarray(Image.open(pictures[-1]).convert("RGB"))
    assert grid.shape == (2 * (64 + 2) + 2, 4 * (64 + 2) + 2, 3)
    assert grid.std() > 10
    assert (finished / "config.yaml").is_file()


def test_the_export_is_a_model_of_the_zoo(finished: Path) -> None:
    model = zoo.create_model(f"local-dir:{finished / 'model'}")
    tokens = model.encode(torch.zeros(1, 3, 24, 40))
    assert tokens.indices.shape == (1, 3, 5)
    assert model.name == "compact_f8.photos"
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["model.decoder.0.weight"], model.state_dict()["decoder.0.weight"])
    assert not any("perceptual" in key for key in saved)


def test_it_resumes(photos: Path, finished: Path, tmp_path: Path) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    fit(photos, tmp_path, "--trainer.max_steps=44", f"--ckpt_path={last}")
    assert len(metrics(tmp_path / "version_0", "train/reconstruction")) == 4
    checkpoint = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 44
    assert checkpoint["optimizer_states"][0]["state"][0]["step"] == 44


def test_the_last_steps_before_the_end_are_not_lost(photos: Path, tmp_path: Path) -> None:
    """Two steps make an epoch and two epochs a validation: the end comes between validations."""
    for version, steps in enumerate((3, 5, 7)):
        fit(photos, tmp_path, f"--trainer.max_steps={steps}", *(["--ckpt_path=last"] if version else []))
        assert metrics(tmp_path / f"version_{version}", "step")[0] == max(0, steps - 2) * (version > 0)
        last = torch.load(tmp_path / f"version_{version}" / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == steps


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--model.init_args.learning_rat=1", "learning_rat"),
        ("--trainer.max_steps=many", "max_steps"),
        ("--data.init_args.train=/nowhere/at/all", "/nowhere/at/all"),
        ("--model.init_args.model=compat_f8", "compact_f8"),
        ("--model.init_args.changes={quantizer: sqf}", "fsq"),
        ("--model.init_args.changes={quantizer: {kind: vector, codebook_size: 8, dim: 4}, chanels: 8}", "chanels"),
        ("--modell.init_args.model=compact_f8", "modell"),
        ("--model.init_args.adversary={discriminator_strat: 1}", "discriminator_strat"),
        ("--model.init_args.adversary={discriminator: {kind: patchgam}}", "patchgam"),
        ("--model.init_args.init=/nowhere/at/all.pt", "/nowhere/at/all.pt"),
        ("--init=/nowhere/at/all.pt", "/nowhere/at/all.pt"),
        ("--init", "--init: expected a value"),
        ("--model.init_args.ema_decay=much", "much"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_runs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, argument: str, named: str
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stopped:
        fit(photos, tmp_path, argument)
    assert named in capsys.readouterr().err + str(stopped.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_field_inside_an_entry_changes_alone(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    adversary = "{discriminator: {kind: patchgan, hidden_channels: 8, num_layers: 1}, discriminator_start: 0}"
    given = f"--model.init_args.adversary={adversary}"
    inner = ["--model.adversary.discriminator.num_layers", "2", "--model.init_args.changes.quantizer.levels=[4, 3, 3]"]
    with pytest.raises(SystemExit):
        fit(photos, tmp_path, given, *inner, "--model.changes.quantizer.kind=finite_scalar", "--print_config")
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert settings["adversary"]["discriminator"] == {"kind": "patchgan", "hidden_channels": 8, "num_layers": 2}
    assert settings["adversary"]["discriminator_start"] == 0
    assert settings["changes"] == {**yaml.safe_load(TINY), "quantizer": {"levels": [4, 3, 3], "kind": "finite_scalar"}}
    fit(
        photos, tmp_path, given, "--model.adversary.discriminator.num_layers=2", "--model.adversary.r1_weight=1e-3",
        "--trainer.max_steps=1",
    )  # fmt: skip
    saved = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    weights = [value for name, value in saved["state_dict"].items() if name.startswith("loss.discriminator")]
    assert [len(value) for value in weights if value.ndim == 4] == [8, 16, 32, 1]
    assert saved["hyper_parameters"]["adversary"]["r1_weight"] == 1e-3


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--model.adversary.discriminator.hidden_chanels=8", "hidden_chanels"),
        ("--model.adversery.discriminator.hidden_channels=8", "adversery"),
        ("--model.model.name.first=8", "model"),
        ("--model.adversary.discriminator.hidden_channels", "expected one argument"),
    ],
)
def test_a_wrong_field_inside_an_entry_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, argument: str, named: str
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stopped:
        fit(photos, tmp_path, "--model.init_args.adversary={discriminator: {kind: patchgan}}", argument)
    assert named in capsys.readouterr().err + str(stopped.value)


def test_a_weight_for_a_loss_that_the_quantizer_lacks_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="commitment"):
        fit(photos, tmp_path, "--model.init_args.quantizer_weights={commitment: 0.25}", "--trainer.max_steps=1")


def test_it_begins_with_the_weights_that_init_names(photos: Path, finished: Path, tmp_path: Path) -> None:
    start = finished / "model" / "model.safetensors"
    fit(photos, tmp_path, "--init", str(start), "--trainer.max_steps=1", "--model.init_args.learning_rate=0")
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (finished, tmp_path / "version_0"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("quantizer", ["vector", "binary"])
def test_any_quantizer_trains(photos: Path, tmp_path: Path, quantizer: str) -> None:
    changes = {"vector": "quantizer: vq, codebook_size: 64, dim: 8", "binary": "quantizer: lfq, bits: 8"}[quantizer]
    changes = TINY.replace("}", f", {changes}}}")
    fit(
        photos, tmp_path, f"--model.init_args.changes={changes}", "--trainer.max_steps=6",
        "--model.init_args.quantizer_weights={commitment: 0.25}",
    )  # fmt: skip
    assert len(metrics(tmp_path / "version_0", "train/commitment")) == 6


def test_an_adversary_by_the_command_line_resumes_and_converts(photos: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from zoo.cli import app

    settings = [
        "--model.init_args.adversary={discriminator: {kind: patchgan, hidden_channels: 4, num_layers: 1}}",
        "--model.init_args.adversary.discriminator_start=1", "--model.init_args.ema_decay=0.9",
        "--trainer.accumulate_grad_batches=2", "--trainer.check_val_every_n_epoch=1",
    ]  # fmt: skip
    fit(photos, tmp_path, *settings, "--trainer.max_steps=3")
    fit(photos, tmp_path, *settings, "--trainer.max_steps=5", "--ckpt_path=last")
    last = tmp_path / "version_1" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 5
    steps = [{int(state["step"]) for state in player["state"].values()} for player in saved["optimizer_states"]]
    assert steps == [{5}, {5}]  # Adam counts the step for which the discriminator rested
    result = CliRunner().invoke(app, ["convert", str(last), "--model", "compact_f8", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    average = {k.removeprefix("ema.module."): v for k, v in saved["state_dict"].items() if k.startswith("ema.module.")}
    for folder in (tmp_path / "out", tmp_path / "version_1" / "model"):
        model = zoo.create_model(f"local-dir:{folder}")
        assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_weights_and_biases_that_is_not_installed_is_told(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer-zoo\[wandb\]"):
        fit(photos, tmp_path, "--wandb=project")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_logs_beside_the_others(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CACHE_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    fit(photos, tmp_path, "--wandb=project", "--trainer.max_steps=2", "--trainer.check_val_every_n_epoch=1")
    wandb.finish()  # what the end of the program does
    assert len(metrics(tmp_path / "version_0", "train/total")) == 2
    (file,) = (tmp_path / "version_0" / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/total" in file.read_bytes()


def test_create_task_from_a_recipe() -> None:
    task = trainers.create_task("compact_f8", recipe="photos", perceptual=None)
    assert task.model.name == "compact_f8.photos"
    assert task.learning_rate == pytest.approx(1e-3)
    with pytest.raises(ValueError, match="compact_photos"):
        trainers.create_task("compact_f8", recipe="unheard_of")


def test_every_shipped_recipe_is_found() -> None:
    for path in CONFIGS.glob("*.yaml"):
        assert find_recipe(path.stem) == path
