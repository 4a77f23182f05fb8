"""The task of adaptive length: how many tokens a step sees, and what validation reports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import batches, fit

from trainers.tasks import AdaptiveTask
from trainers.tasks.adaptive import TailDropConfig
from zoo.config import ConfigError

SMALL = {
    "patch_size": 2, "channels": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "latent_channels": 6,
    "hidden": 8, "quantizer": {"kind": "finite_scalar", "levels": [5, 4]},
}  # fmt: skip


def task(**settings: Any) -> AdaptiveTask:
    torch.manual_seed(0)
    return AdaptiveTask("spectral_f16.photos", changes=SMALL, learning_rate=1e-3, **settings)


# -- schedules -----------------------------------------------------------------------------------------------------

DISTRIBUTIONS = ("uniform", "log_uniform", "powers", "geometric")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(most=st.integers(1, 300), items=st.integers(1, 8), step=st.integers(0, 5), each=st.booleans())
def test_numbers_lie_between_one_and_all(distribution: Any, most: int, items: int, step: int, each: bool) -> None:
    config = TailDropConfig(distribution, each_item=each, start=3)
    state = torch.get_rng_state()
    counts = config.draw(items, most, step)
    assert counts.shape == (items,)
    assert counts.dtype == torch.int64
    assert 1 <= int(counts.min()) <= int(counts.max()) <= most
    assert step >= 3 or counts.tolist() == [most] * items
    assert each or len(set(counts.tolist())) == 1
    assert not torch.equal(torch.get_rng_state(), state)


def drawn(config: TailDropConfig, most: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.bincount(config.draw(40_000, most, 0), minlength=most + 1)[1:] / 40_000


def test_the_distributions_are_what_they_are_called() -> None:
    torch.testing.assert_close(drawn(TailDropConfig("uniform"), 5), torch.full((5,), 0.2), rtol=0, atol=0.01)
    powers = torch.zeros(12)
    powers[[0, 1, 3, 7, 11]] = 0.2
    torch.testing.assert_close(drawn(TailDropConfig("powers"), 12), powers, rtol=0, atol=0.01)
    log_uniform = (1 + 1 / torch.arange(1.0, 17.0)).log() / torch.tensor(17.0).log()
    torch.testing.assert_close(drawn(TailDropConfig("log_uniform"), 16), log_uniform, rtol=0, atol=0.01)
    survival = torch.tensor([0.5**k * (0.5 if k < 5 else 1) for k in range(6)])
    torch.testing.assert_close(drawn(TailDropConfig("geometric", 0.5), 6), survival, rtol=0, atol=0.01)
    assert drawn(TailDropConfig(full=0.7), 100)[-1] == pytest.approx(0.7 + 0.3 / 100, abs=0.01)


def test_wrong_schedules_are_told() -> None:
    with pytest.raises(ConfigError, match="a survival in"):
        TailDropConfig("geometric", survival=1.0)
    with pytest.raises(ConfigError, match="full"):
        TailDropConfig(full=1.5)
    with pytest.raises(ConfigError, match="'uniform', 'log_uniform', 'powers', 'geometric', got 'normal'"):
        task(tail_drop={"distribution": "normal"})


# -- training ------------------------------------------------------------------------------------------------------


def test_a_step_sees_as_many_tokens_of_each_item_as_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = task(tail_drop={"start": 1})
    seen: list[list[int]] = []
    reconstruct = type(module.model).reconstruct

    def watched(model: Any, codes: Any, lengths: Any = None, size: Any = None) -> Any:
        if model.training:
            seen.append(lengths.tolist())
        return reconstruct(model, codes, lengths, size)

    monkeypatch.setattr(type(module.model), "reconstruct", watched)
    fit(module, batches(4))
    assert len(seen) == 4
    assert seen[0] == [16] * 4  # of 4 x 4 cells
    assert len({count for counts in seen[1:] for count in counts}) > 3


def test_validation_reports_the_quality_of_prefixes() -> None:
    run = fit(task(reported=[0.0625, 0.5], ema_decay=0.9), batches(2), batches(1))
    assert {"val/psnr", "val/psnr_0.0625", "val/psnr_0.5"} <= set(run.callback_metrics)


def test_training_orders_the_tokens() -> None:
    """After some steps on one batch more tokens give a better image."""
    module = task(tail_drop={"distribution": "log_uniform", "full": 0.3})
    images = batches(1).expand(250, -1, -1, -1, -1)
    fit(module, images)
    x = module.model_range(images[0])
    model = module.model.eval()
    errors = [(model.decode(model.encode(x, num_tokens=k)) - x).square().mean().item() for k in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


def test_a_model_without_prefixes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one whose first tokens decode alone, got compact_f8\.photos"):
        AdaptiveTask("compact_f8.photos")
