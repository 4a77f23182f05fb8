"""The task of codecs: terms, discriminators, schedules, averages, pictures, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainers.callbacks import ReconstructionGrid, Throughput
from trainers.tasks import CodecTask
from zoo.config import ConfigError

SMALL = {
    "n_fft": 64, "hop_length": 16, "encoder_widths": [8, 8], "encoder_blocks": [1, 1], "decoder_widths": [8, 8],
    "decoder_blocks": [1, 1], "envelope_bands": 0,
    "quantizer": {"kind": "residual", "level": {"kind": "vector", "codebook_size": 8, "dim": 4}, "num_levels": 2,
                  "dropout": {}},
}  # fmt: skip
LOSS = {
    "balanced": False,
    "waveform_weight": 1.0,
    "mel_weight": 1.0,
    "mel": {"kind": "log_mel", "resolutions": [{"sample_rate": 16000, "n_fft": 128, "hop_length": 32, "n_mels": 8}]},
}
ADVERSARY = {
    "discriminators": [
        {"kind": "stft", "filters": 2, "n_ffts": [64], "hop_lengths": [16], "window_lengths": [64]},
        {"kind": "wave", "periods": [2], "period_channels": [2], "windows": [128], "band_channels": 2},
    ],
    "objective": "least_squares",
    "discriminator_start": 2,
    "learning_rate": 1e-2,
}
WEIGHTS = {"codebook": 1.0, "commitment": 0.25}


def task(seed: int = 0, **settings: Any) -> CodecTask:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"loss": LOSS, "quantizer_weights": WEIGHTS, "learning_rate": 3e-3}
    return CodecTask("spectral_codec_16khz.speech", SMALL, **{**defaults, **settings})


def sounds(count: int, size: int = 2) -> Tensor:
    """Batches of harmonic sounds of random pitch."""
    draw = torch.Generator().manual_seed(0)
    pitch = 100 + 300 * torch.rand(count, size, 1, 1, generator=draw)
    time = torch.arange(1024) / 16000
    return sum(0.2 / k * torch.sin(2 * torch.pi * k * pitch * time) for k in range(1, 5))  # type: ignore[return-value]


class Watch(lightning.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def fit(module: CodecTask, batches: Tensor, **settings: Any) -> Watch:
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    watch = Watch()
    callbacks = [watch, *settings.pop("callbacks", [])]
    validation = settings.pop("validation", None)
    run = lightning.Trainer(
        accelerator="cpu", max_epochs=1, log_every_n_steps=1, callbacks=callbacks, **{**quiet, **settings}
    )
    run.fit(
        module,
        DataLoader(batches, batch_size=None),
        None if validation is None else DataLoader(validation, batch_size=None),  # type: ignore[arg-type]
    )
    return watch


def test_speed_is_told_in_seconds_of_sound() -> None:
    rows = fit(task(), sounds(3), callbacks=[Throughput()]).rows
    assert rows[-1]["train/audio_seconds_per_second"] > 0
    assert "train/images_per_second" not in rows[-1]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_codec_learns_its_sounds(balanced: bool) -> None:
    module = task(loss={**LOSS, "balanced": balanced}, learning_rate=1e-2, ema_decay=0.9)
    rows = fit(module, sounds(1).expand(60, -1, -1, -1)).rows
    assert rows[-1]["train/mel"] < 0.7 * rows[0]["train/mel"]


def test_discriminators_start_at_their_step_with_their_own_rate() -> None:
    module = task(adversary=ADVERSARY)
    before = [parameter.clone() for parameter in module.loss.discriminator.parameters()]
    rows = fit(module, sounds(4)).rows
    assert [("train/adversarial" in row, "train/logits_real" in row) for row in rows] == [
        (False, False), (False, False), (True, True), (True, True),
    ]  # fmt: skip
    assert all(not torch.equal(a, b) for a, b in zip(before, module.loss.discriminator.parameters(), strict=True))
    generator, discriminator = module.trainer.optimizers
    assert discriminator.param_groups[0]["initial_lr"] == 1e-2
    for player in (generator, discriminator):  # Adam counts the steps for which the discriminator rested
        assert {int(state["step"]) for state in player.state.values()} == {4}


def test_the_decoder_alone_leaves_all_tokens_as_they_are() -> None:
    module = task(trainable="decoder", adversary={**ADVERSARY, "discriminator_start": 0})
    signal = sounds(1)[0]
    tokens = module.model.eval().encode(signal)
    codes = module.model.codes(tokens)
    sound = module.model.reconstruct(codes)
    fit(module, sounds(3))
    assert module.model.eval().encode(signal).levels[0].equal(tokens.levels[0])
    assert not torch.equal(module.model.reconstruct(codes), sound)


def test_exponential_schedule_ends_at_its_rate() -> None:
    module = task(schedule="exponential", final_rate=0.01, warmup_steps=2)
    rates = [module.rate(step, 12) for step in range(13)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([0.01 ** (i / 10) for i in range(11)])


def test_linear_schedule_ends_at_its_rate() -> None:
    module = task(schedule="linear", final_rate=0.1, warmup_steps=1)
    assert [module.rate(step, 10) for step in (0, 1, 10, 20)] == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert module.rate(5, 9) == pytest.approx(0.55)


def test_the_rate_rises_with_the_square_of_the_step_and_stays_after_the_final_step() -> None:
    """BigCodec's: 1e-5 to 1e-4 in 1,000 steps, back in 500,000."""
    settings = {"learning_rate": 1e-4, "warmup_steps": 1000, "first_rate": 0.1, "final_rate": 0.1}
    module = task(schedule="linear", final_step=501_000, **settings)
    steps = (0, 500, 1000, 251_000, 501_000, 599_999)
    rates = [1e-4 * module.rate(step, 600_000) for step in steps]
    assert rates == pytest.approx([1e-5, 3.25e-5, 1e-4, 5.5e-5, 1e-5, 1e-5])


def test_both_players_have_the_epsilon() -> None:
    module = task(adversary=ADVERSARY, epsilon=1e-3)
    fit(module, sounds(1))
    assert [player.param_groups[0]["eps"] for player in module.trainer.optimizers] == [1e-3, 1e-3]


def test_validation_measures_the_average_and_pictures_spectrograms(tmp_path: Path) -> None:
    module = task(ema_decay=0.9)
    watch = fit(
        module,
        sounds(2),
        validation=sounds(1),
        callbacks=[ReconstructionGrid()],
        default_root_dir=tmp_path,
        logger=None,
    )
    metrics = module.trainer.callback_metrics
    assert {"val/si_sdr", "val/mel", "val/total"} <= set(metrics)
    assert len(watch.rows) == 2
    assert sorted(path.name for path in tmp_path.rglob("step_*.png")) == ["step_0000000.png", "step_0000002.png"]
    pictures = module.pictures(sounds(1)[0])
    assert pictures.shape == (2, 1, 80, 5)
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "compact_f8.photos"}, "one of sounds"),
        ({"loss": {"mel_weigt": 1.0}}, "mel_weigt"),
        ({"adversary": {"objective": "none"}}, "objective"),
        ({"adversary": {"discriminators": []}}, "at least one discriminator"),
        ({"adversary": {"discriminator_weights": "no.safetensors"}}, "discriminator_weights to be a file"),
        ({"adversary": {"gradient_clip_val": -1.0}}, "gradient_clip_val >= 0"),
        ({"adversary": {"warmup_steps": -1}}, "warmup_steps >= 0"),
        ({"quantizer_weights": {"entropy": 1.0}}, "the losses of this quantizer"),
        ({"schedule": "exponential"}, "final_rate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"epsilon": 0.0}, "epsilon: expected a value > 0"),
        ({"first_rate": 1.0}, "first_rate: expected a share"),
        ({"warmup_steps": 5, "final_step": 5}, "final_step: expected a step after the 5 of the warm-up"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, Any], message: str) -> None:
    model = settings.pop("model", None)
    with pytest.raises((ValueError, ConfigError), match=message):
        task(**settings) if model is None else CodecTask(model)


def test_a_semantic_loss_needs_a_model_with_a_speech_model() -> None:
    with pytest.raises(ValueError, match="a model with a semantic_head, got spectral_codec_16khz"):
        task(semantic_weight=1.0)


def test_the_semantic_head_learns_the_features_from_the_codes() -> None:
    torch.manual_seed(0)
    sizes = {
        "channels": 4, "strides": [4, 2], "decoder_channels": 8, "acoustic_dim": 4,
        "features": {"kind": "mel", "width": 8},
        "quantizer": {"kind": "residual", "level": {"kind": "vector", "codebook_size": 8, "dim": 12}, "num_levels": 2},
    }  # fmt: skip
    learner = CodecTask("xcodec_16khz", sizes, loss=LOSS, quantizer_weights=WEIGHTS, semantic_weight=100.0)
    signal = sounds(1)[0]
    total, values = learner.generator_loss(signal, learner.model(signal), 0)
    expected = 100 * values["semantic"] + values["waveform"] + values["mel"]
    expected = expected + sum(weight * values[name] for name, weight in WEIGHTS.items())
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    taught = {id(weight) for weight in learner.semantic_head.parameters()}
    assert taught <= {id(weight) for weight in learner.generator_parameters()}
    assert all(float(weight.grad.abs().max()) > 0 for weight in learner.semantic_head.parameters())
    assert float(learner.model.semantic_encoder.conv_in.weight.grad.abs().max()) > 0


def test_discriminators_move_first_and_with_accumulated_batches_last() -> None:
    def weights(first: bool, parts: int) -> list[Tensor]:
        module = task(adversary={**ADVERSARY, "discriminator_start": 0, "discriminator_first": first})
        rows = fit(module, sounds(4), accumulate_grad_batches=parts).rows
        assert all({"train/adversarial", "train/discriminator"} <= set(row) for row in rows)
        return list(module.model.parameters())

    assert not all(map(torch.equal, weights(True, 1), weights(False, 1)))
    assert all(map(torch.equal, weights(True, 2), weights(False, 2)))
