"""What is watched while training: dead codes and their causes, the adversary's health, speed, gradients that break."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_task import ADVERSARY, VECTOR, batches, fit, task

import zoo
from trainers.callbacks import CodebookUsage, DiscriminatorHealth, ExportModel, StopOnNonFinite, Throughput
from trainers.callbacks.codebook import likely_causes


def output(module: Any) -> zoo.Output:
    with torch.no_grad():
        return module.eval()(batches(1)[0])


# -- dead codes ----------------------------------------------------------------------------------------------------


def test_dead_codes_are_told_with_their_causes(caplog: pytest.LogCaptureFixture) -> None:
    module = task(quantizer_weights={"codebook": 1.0})
    with torch.no_grad():  # codes far away from all latents but one
        module.model.quantizer.codebook.weight.add_(100)
        module.model.quantizer.codebook.weight[0] = 0
    with caplog.at_level(logging.WARNING, logger="zoo"):
        fit(module, batches(1), validation=batches(4), callbacks=[CodebookUsage()], num_sanity_val_steps=0)
    (message,) = [record.getMessage() for record in caplog.records if "of 30 codes" in record.getMessage()]
    assert "level 0: 1 of 30 codes are used by 256 tokens" in message
    assert "quantizer_weights has no `commitment`" in message
    assert "no `codebook`" not in message


def test_a_few_tokens_are_no_sign_of_dead_codes(caplog: pytest.LogCaptureFixture) -> None:
    module = task({"quantizer": "vector", "codebook_size": 30, "dim": 6, "metric": "cosine"})
    callback = CodebookUsage()
    callback._output = output(module)
    with caplog.at_level(logging.WARNING, logger="zoo"):
        callback._warn(module, 0, torch.cat([torch.ones(10), torch.zeros(990)]))
        assert not caplog.records
        callback._warn(module, 0, torch.cat([torch.full((10,), 100.0), torch.zeros(990)]))
    assert "10 of 1000 codes" in caplog.text


@pytest.mark.parametrize(
    ("changes", "settings", "cause"),
    [
        (VECTOR, {"quantizer_weights": {"commitment": 0.25}}, "no `codebook`: no loss moves the codes"),
        ({**VECTOR, "codebook": {"kind": "ema"}}, {"quantizer_weights": {"commitment": 1.0}}, "not revived"),
        ({"quantizer": "lfq", "bits": 6}, {"quantizer_weights": {"commitment": 0.25}}, "no `entropy`"),
        (VECTOR, {"learning_rate": 1e-2}, "learning rate 0.01 without a warm-up"),
    ],
)
def test_causes_follow_the_settings(changes: dict[str, Any], settings: dict[str, Any], cause: str) -> None:
    module = task(changes, **settings)
    assert any(cause in found for found in likely_causes(module, output(module)))


def test_a_collapsed_encoder_and_codes_out_of_reach_are_seen() -> None:
    module = task()
    with torch.no_grad():
        module.model.quantizer.codebook.weight.mul_(1e4)
    assert any("out of reach" in cause for cause in likely_causes(module, output(module)))
    with torch.no_grad():
        module.model.encoder[-1].weight.zero_()
        module.model.encoder[-1].bias.fill_(1.0)
    assert any("same latent everywhere" in cause for cause in likely_causes(module, output(module)))


# -- the adversary -------------------------------------------------------------------------------------------------


def health(loss: float, weight: float, steps: int, caplog: pytest.LogCaptureFixture, **config: Any) -> list[str]:
    callback = DiscriminatorHealth(patience=3)
    module = task(adversary={**ADVERSARY, **config})
    metrics = {
        "train/logits_real": torch.tensor(1.0), "train/logits_fake": torch.tensor(-1.0),
        "train/discriminator_adversarial": torch.tensor(loss), "train/adversarial_weight": torch.tensor(weight),
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="zoo"):
        for step in range(steps):
            run = SimpleNamespace(callback_metrics=metrics, global_step=step, log_every_n_steps=1)
            callback.on_train_batch_end(run, module, None, None, step)  # type: ignore[arg-type]
    return [record.getMessage() for record in caplog.records]


def test_a_discriminator_that_wins_or_learns_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert health(0.5, 0.5, 9, caplog) == []
    assert health(0.01, 0.5, 2, caplog) == []
    (message,) = health(0.01, 0.5, 3, caplog)
    assert "wins" in message
    caplog.clear()
    (message,) = health(1.0, 0.5, 4, caplog)
    assert "does not tell" in message


def test_an_adaptive_weight_at_its_bound_is_told(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = health(0.5, 0.5 * 7, 3, caplog, adaptive_weight=True, adaptive_weight_maximum=7.0)
    assert "at its bound 3.5" in message


def test_the_health_is_watched_in_a_run(caplog: pytest.LogCaptureFixture) -> None:
    adversary = {**ADVERSARY, "discriminator_start": 2, "learning_rate": 0.0}
    with caplog.at_level(logging.WARNING, logger="zoo"):
        fit(task(adversary=adversary), batches(6), callbacks=[DiscriminatorHealth(patience=4)])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the discriminator does not tell originals from reconstructions"
    ]


# -- speed, gradients, export --------------------------------------------------------------------------------------


def test_images_per_second_are_logged(tmp_path: Path) -> None:
    run = fit(task(), batches(3), callbacks=[Throughput()], logger=CSVLogger(tmp_path, "", ""))
    assert 0 < float(run.callback_metrics["train/images_per_second"]) < 1e6
    assert "train/images_per_second" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("adversary", [None, ADVERSARY], ids=["alone", "adversary"])
def test_a_broken_gradient_stops_the_run_and_keeps_the_batch(tmp_path: Path, adversary: dict[str, Any] | None) -> None:
    images = batches(4)
    images[2, 1, 0, 3, 3] = float("nan")
    module = task(adversary=adversary, ema_decay=0.9)
    with pytest.raises(FloatingPointError, match=r"step 2: .*Usual causes"):
        fit(module, images, callbacks=[StopOnNonFinite()], default_root_dir=tmp_path)
    saved = torch.load(tmp_path / "non_finite" / "step_0000002_rank_0.pt", weights_only=True)
    assert torch.equal(saved["batch"].nan_to_num(7), images[2].nan_to_num(7))
    assert saved["step"] == 2
    assert len(saved["parameters"]) > 0
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_average_is_exported(tmp_path: Path) -> None:
    module = task(ema_decay=0.9)
    fit(module, batches(3), callbacks=[ExportModel()], logger=CSVLogger(tmp_path, "", ""))
    model = zoo.create_model(f"local-dir:{tmp_path / 'model'}")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), module.ema.module.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), module.model.parameters()))
