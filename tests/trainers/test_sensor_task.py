"""The task of sensor signals: its steps, schedule and refusals; recipes, learning, resuming, and two processes."""

from __future__ import annotations

import csv
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import yaml
from dipoles import folder
from lightning.pytorch.callbacks import ModelCheckpoint
from test_distributed import assert_same_steps, both, in_process, recorded
from test_resume import Interrupt, Losses, assert_equal
from torch.utils.data import DataLoader

import trainers
import zoo
from trainers.checkpoint_io import AtomicCheckpointIO
from trainers.data import SensorData
from trainers.data.sensors import SensorSignals
from trainers.recipes import CONFIGS
from trainers.tasks import SensorTask
from trainers.tasks.sensors import measured
from zoo.cli.training import run
from zoo.losses.sensor_windows import normalized

RECIPES = ("brainomni_published", "brainomni_here")
LEVEL = {
    "kind": "vector", "codebook_size": 16, "dim": 16, "gradient": {"kind": "rotation"},
    "codebook": {"kind": "ema", "start": "kmeans", "smoothing": 1e-6, "revive_below": 2.0},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "window": 32, "width": 16, "sources": 2, "heads": 2,
    "network": {"filters": 4, "strides": [2, 2, 2], "kernel_size": 5, "last_kernel_size": 5, "causal": False},
    "quantizer": {"kind": "residual", "level": LEVEL, "num_levels": 2, "gradient": "per_level"},
}  # fmt: skip


def task(changes: dict[str, Any] | None = None, seed: int = 0, **settings: Any) -> SensorTask:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"quantizer_weights": {"commitment": 0.25}, "learning_rate": 3e-3}
    return SensorTask("braintokenizer", {**SMALL, **(changes or {})}, **{**defaults, **settings})


def signals(batch: int = 4, sensors: int = 5, samples: int = 64, seed: int = 0) -> SensorSignals:
    draw = torch.Generator().manual_seed(seed)
    return SensorSignals(
        torch.randn(batch, sensors, samples, generator=draw),
        torch.randn(batch, sensors, 6, generator=draw),
        torch.randint(3, (batch, sensors), generator=draw),
        torch.arange(batch) + 100 * seed,
    )


def quiet(**settings: Any) -> lightning.Trainer:
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return lightning.Trainer(**{"accelerator": "cpu", "log_every_n_steps": 1, **off, **settings})


# -- a pass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sensors", "hidden", "left"), [(2, 0.25, 1), (5, 0.25, 4), (8, 0.25, 6), (8, 0.0, 7)])
def test_a_share_of_the_sensors_is_hidden_and_at_least_one(sensors: int, hidden: float, left: int) -> None:
    batch = signals(sensors=sensors)
    seen = task(hidden=hidden, noise=0.0).partly(batch)
    assert seen.shape == (4, left, 64)
    for item in range(4):
        kept = [
            next(i for i in range(sensors) if torch.equal(batch.signals[item, i], one)) for one in seen.signals[item]
        ]
        assert len(set(kept)) == left
        assert torch.equal(seen.places[item], batch.places[item, kept])
        assert torch.equal(seen.types[item], batch.types[item, kept])


def test_noise_has_its_deviation_and_every_draw_is_that_of_the_seed() -> None:
    module, plain = task(noise=0.3), task(noise=0.0)
    batch = signals(samples=4096)
    noise = module.partly(batch).signals - plain.partly(batch).signals
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    again, other = module.partly(batch[1:2]), module.partly(signals(samples=4096, seed=1))
    assert torch.equal(again.signals, module.partly(batch).signals[1:2])
    assert not torch.equal(other.places, module.partly(batch).places)


def test_the_loss_is_that_of_all_sensors_of_normalized_windows() -> None:
    module, batch = task(), signals()
    output = module.reconstructed(batch)
    assert output.reconstruction.shape == batch.shape
    total, values = module.generator_loss(batch, output, 0)
    windows = module.windows(output.reconstruction), normalized(module.windows(batch.signals))
    assert windows[0].shape == (4, 5, 2, 32)
    torch.testing.assert_close(values["time"], (windows[0] - windows[1]).detach().abs().mean())
    parts = [values[name] for name in ("time", "correlation", "amplitude")]
    expected = sum(parts) + 0.5 * values["phase"] + 0.25 * values["commitment"]
    torch.testing.assert_close(total.detach(), expected)


def test_what_is_left_of_whole_windows_is_dropped() -> None:
    module, batch = task(), signals(samples=75)
    assert module.model_range(batch).shape == (4, 5, 64)
    with pytest.raises(ValueError, match="expected segments of at least 32 samples, got 20"):
        module.model_range(signals(samples=20))
    with pytest.raises(ValueError, match="expected segments of at least 2 sensors, got 1"):
        module.partly(signals(sensors=1))


def test_measures_are_those_of_each_item() -> None:
    one, other = (normalized(torch.randn(3, 2, 4, 32, generator=torch.Generator().manual_seed(s))) for s in (0, 1))
    found = measured(one, other)
    for item in range(3):
        rows = zip(one[item].reshape(-1, 32), other[item].reshape(-1, 32))
        pcc = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in rows]).mean()
        assert float(found["pcc"][item]) == pytest.approx(float(pcc), abs=1e-5)
    torch.testing.assert_close(found["mae"], (one - other).abs().mean((1, 2, 3)))
    torch.testing.assert_close(found["mse"], (one - other).square().mean((1, 2, 3)))
    same = measured(one, one)
    assert all(float(same[name].max()) == 0 for name in ("mae", "mse", "amplitude_mae", "phase_mae"))


# -- optimizer ---------------------------------------------------------------------------------------------------------


def test_rates_rise_as_a_logarithm_and_fall_as_a_cosine() -> None:
    module = task()
    rates = [module.rate(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.1 + 0.9 * math.log(10) / math.log(20))
    assert rates[19] == pytest.approx(1.0)
    assert rates[20] == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 180)) / 2)
    assert rates[199] == pytest.approx(0.05)
    assert [round(task(warmup=0.0).rate(step, 10), 3) for step in (4, 9)] == [0.525, 0.05]


def test_parameters_have_the_rates_and_the_decay_of_their_kind() -> None:
    level = {"kind": "projected", "dim": 16, "inner": {**LEVEL, "dim": 8}}
    module = task({"quantizer": {**SMALL["quantizer"], "level": level}}, learning_rate=2e-4)
    groups = module.generator_groups()
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    decaying, plain, quantizer = ([names[id(p)] for p in group["params"]] for group in groups)
    assert sorted(plain) == ["sensor_embedding.norm.weight", "sensor_embedding.sensor_type.weight"]
    assert quantizer
    assert all(name.startswith("quantizer.") and "project_" in name for name in quantizer)
    assert {"sources", "to_key.bias"} <= set(decaying)
    optimizer = torch.optim.AdamW(groups, lr=module.learning_rate, betas=module.betas, weight_decay=0.01)
    rows = [(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups]
    assert rows == [(2e-4, 0.01, (0.5, 0.9)), (2e-4, 0.0, (0.5, 0.9)), (3e-4, 0.0, (0.5, 0.9))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 1.0}, r"hidden: expected a share in \[0, 1\), got 1.0"),
        ({"warmup": -0.1}, "warmup: expected a share"),
        ({"noise": -1.0}, "noise: expected a deviation >= 0"),
        ({"loss": {"phase_weight": -1.0}}, "weights >= 0"),
        ({"quantizer_weights": {"entropy": 1.0}}, "the losses of this quantizer"),
    ],
)
def test_settings_that_cannot_work_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_a_model_of_sounds_is_refused() -> None:
    with pytest.raises(ValueError, match="model: expected one of sensors with places, such as braintokenizer"):
        SensorTask("spectral_codec_16khz.speech", quantizer_weights={"commitment": 0.25})


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_runs_two_steps(name: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "recordings", seconds=3.0)
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    accumulated = recipe["trainer"].get("accumulate_grad_batches", 1)
    run(
        "fit",
        [
            f"--config={name}", f"--data.train={place}", f"--data.val={place}", "--data.init_args.seconds=0.5",
            "--data.init_args.batch_size=2", "--data.init_args.workers=0", f"--model.changes={json.dumps(SMALL)}",
            f"--data.init_args.cache={tmp_path / 'prepared'}", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
            "--trainer.check_val_every_n_epoch=null", f"--trainer.val_check_interval={accumulated}",
            "--trainer.limit_val_batches=3", "--trainer.log_every_n_steps=1", "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    steps = [row for row in rows if row.get("train/total")]
    assert len(steps) == 2 * accumulated  # a row for each batch
    terms = ("total", "time", "correlation", "amplitude", "phase", "commitment")
    assert all(math.isfinite(float(row[f"train/{term}"])) for row in steps for term in terms)
    assert any(row.get("val/pcc") and row.get("val/entropy_bits_0") for row in rows)
    saved = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert len(saved["optimizer_states"]) == 1
    assert saved["optimizer_states"][0]["param_groups"][0]["eps"] == 1e-5
    for kept in ("model", "best"):
        model = zoo.create_model(f"local-dir:{tmp_path / 'version_0' / kept}")
        assert model.encode(signals(1, 19).signals).indices.shape == (1, 2, 2 * 4 * 2)
    assert list((tmp_path / "version_0" / "reconstructions").glob("*.png"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_makes_the_task_of_its_model(name: str) -> None:
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    made: Any = trainers.create_task("braintokenizer", name.removeprefix("brainomni_"))
    assert made.learning_rate == recipe["learning_rate"]
    assert made.loss.config.weights == {"time": 1.0, "correlation": 1.0, "amplitude": 1.0, "phase": 0.5}
    assert made.quantizer_weights == {"commitment": 0.25}
    level = made.model.config.quantizer.level
    assert (level.codebook.decay, level.codebook.revive_below, level.gradient.kind) == (0.99, 2.0, "rotation")


# -- learning, resuming, processes -------------------------------------------------------------------------------------


def test_validation_tells_eeg_and_meg_apart(tmp_path: Path) -> None:
    place = folder(tmp_path, ((4, 0), (0, 4), (2, 2)))
    module = task()

    def validated(size: int) -> dict[str, float]:
        data = SensorData(str(place), str(place), seconds=0.25, batch_size=size)
        return quiet().validate(module, data, verbose=False)[0]  # type: ignore[return-value]

    found, again = validated(4), validated(3)
    for name in ("mae", "mse", "amplitude_mae", "phase_mae", "pcc"):
        mean = (found[f"val/{name}_eeg"] + 2 * found[f"val/{name}_meg"]) / 3
        assert found[f"val/{name}"] == pytest.approx(mean, rel=1e-5, abs=1e-7)
    assert again["val/pcc"] == pytest.approx(found["val/pcc"], abs=1e-5)  # in batches of any size
    assert again["val/time"] == pytest.approx(found["val/time"], rel=1e-5)  # with the same sensors hidden


@pytest.mark.slow
def test_a_model_learns_to_fill_in_hidden_sensors(tmp_path: Path) -> None:
    """One segment set of one dipole, 400 steps: the loss falls below 0.85 of its first value, and a plain pass
    correlates with what was recorded."""
    place = folder(tmp_path, ((4, 0),), seconds=2.0, dipoles=1)
    level = {**LEVEL, "codebook_size": 64, "dim": 32}
    network = {**SMALL["network"], "filters": 8}
    changes = {
        "width": 32, "sources": 4, "heads": 4, "network": network, "quantizer": {**SMALL["quantizer"], "level": level},
    }  # fmt: skip
    module = task(changes, warmup=0.0, final_rate=1.0)
    batch = next(iter(SensorData(str(place), seconds=0.5, batch_size=4).train_dataloader()))
    losses = Losses()
    quiet(max_steps=400, callbacks=[losses], max_epochs=-1).fit(module, DataLoader([batch], batch_size=None))
    first, last = losses.steps[0], losses.steps[-1]
    assert last["train/total"] < 0.85 * first["train/total"]
    assert last["train/correlation"] < 0.85 * first["train/correlation"]
    module.eval()
    with torch.no_grad():
        found = measured(module.windows(module(batch).reconstruction), normalized(module.windows(batch.signals)))
    assert float(found["pcc"].mean()) > 0.2


def test_a_resumed_run_ends_in_the_same_state(tmp_path: Path) -> None:
    place = folder(tmp_path / "recordings", seconds=2.0)

    def fit(out: Path, *, stop: int | None = None, resume: Path | None = None) -> tuple[dict[str, Any], Any]:
        losses = Losses()
        module = task(ema_decay=0.9)
        loop = quiet(
            max_steps=8, max_epochs=-1, enable_checkpointing=True, plugins=[AtomicCheckpointIO()], default_root_dir=out,
            limit_val_batches=1,
            callbacks=[losses, Interrupt(stop), ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)],
        )  # fmt: skip
        torch.manual_seed(3 if resume is None else 99)  # a new process is in another random state
        data = SensorData(str(place), str(place), seconds=0.5, batch_size=2)  # 6 batches an epoch
        with pytest.raises(InterruptedError) if stop is not None else nullcontext():
            loop.fit(module, data, ckpt_path=resume, weights_only=True)
        return torch.load(out / f"step={stop or 8}.ckpt", weights_only=True), losses.steps

    whole, losses = fit(tmp_path / "whole")
    for stop in (2, 6):
        fit(tmp_path / f"first{stop}", stop=stop)
        resumed, further = fit(tmp_path / f"second{stop}", resume=tmp_path / f"first{stop}" / f"step={stop}.ckpt")
        assert further == losses[-len(further) :]
        assert len(further) == 8 - stop
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch"):
            assert_equal(resumed[key], whole[key], key)


def train(world_size: int, rank: int) -> dict[str, Any]:
    batches = [signals(4, sensors, seed=seed) for seed, sensors in enumerate((5, 3, 5))]
    share = 4 // world_size
    own = [batch[rank * share : (rank + 1) * share] for batch in batches]
    level = {**LEVEL, "codebook": {"kind": "ema"}}  # the others draw from each process's own generator
    module = task({"quantizer": {**SMALL["quantizer"], "level": level}}, seed=rank, ema_decay=0.9)
    return recorded(
        module, DataLoader(own, batch_size=None), devices=world_size,
        strategy="ddp" if world_size > 1 else "auto", gradient_clip_val=0.5,
    )  # fmt: skip


def _process(rank: int, port: int, out: str, names: list[str]) -> None:
    with in_process(rank, port, out):
        torch.save(train(2, rank), f"{out}/0_{rank}.pt")


def test_two_processes_step_as_one_on_the_joined_batch(tmp_path: Path) -> None:
    assert_same_steps(both(_process, tmp_path, ["sensors"])["sensors"], train(1, 0))
