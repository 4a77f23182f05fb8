"""The task of reconstruction: what counts as a step, who moves when, averages, frozen parts, options, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from tiny_task import ADVERSARY, VECTOR, WEIGHTS, batches, fit, task

import zoo
from trainers.data.rows import ImagePairs
from trainers.tasks import ReconstructionTask
from trainers.tasks.anatomy import decoder_anatomy
from zoo.losses import PatchGANConfig
from zoo.quantizers import QUANTIZERS
from zoo.quantizers.latent_perturbation import perturbed_levels

GUMBEL = {"quantizer": "gumbel", "codebook_size": 8, "dim": 6}


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Watch(lightning.Callback):
    """Learning rates and losses of each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.losses: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.losses.append({key: float(value) for key, value in trainer.callback_metrics.items()})


# -- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_one_update_of_the_generator(tmp_path: Path, accumulate: int) -> None:
    module, logger = task(adversary=ADVERSARY), CSVLogger(tmp_path, "", "")
    run = fit(module, batches(20), max_steps=4, accumulate_grad_batches=accumulate, logger=logger)
    assert run.global_step == 4
    assert run.fit_loop.total_batch_idx + 1 == 4 * accumulate
    for optimizer in run.optimizers:
        assert {int(state["step"]) for state in optimizer.state.values()} == {4}
    steps = [int(line.split(",")[list_index]) for line, list_index in _column(tmp_path / "metrics.csv", "step")]
    assert sorted(set(steps)) == [0, 1, 2, 3]


def _column(path: Path, name: str) -> list[tuple[str, int]]:
    header, *lines = path.read_text().splitlines()
    return [(line, header.split(",").index(name)) for line in lines]


def test_the_rest_of_an_epoch_is_a_step_too() -> None:
    assert fit(task(), batches(5), max_epochs=2, accumulate_grad_batches=2).global_step == 6


def test_accumulated_batches_step_as_one_batch_of_all() -> None:
    images = batches(2, size=4)
    whole, parts = task(), task()
    fit(whole, images.flatten(0, 1)[None])
    fit(parts, images, accumulate_grad_batches=2)
    for a, b in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_both_players_are_clipped() -> None:
    lengths: list[float] = []

    class Lengths(lightning.Callback):
        def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(self._note)

        def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
            gradients = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
            lengths.append(float(torch.nn.utils.get_total_norm(gradients)))

    fit(task(adversary=ADVERSARY), batches(2), callbacks=[Lengths()])
    assert len(lengths) == 4
    assert min(lengths) > 0.01
    lengths.clear()
    fit(task(adversary=ADVERSARY), batches(2), gradient_clip_val=0.01, callbacks=[Lengths()])
    assert lengths == pytest.approx([0.01] * 4, rel=1e-3)


def test_schedules_count_steps_of_the_generator() -> None:
    watch = Watch()
    adversary = {**ADVERSARY, "discriminator_start": 2, "learning_rate": 5e-4}
    module = task(adversary=adversary, learning_rate=1e-3, warmup_steps=2, final_rate=0.1)
    fit(module, batches(10), max_steps=5, max_epochs=-1, accumulate_grad_batches=2, callbacks=[watch])
    rates = watch.rates[::2]
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
    assert [rate for rate, _ in rates] == pytest.approx([5e-4, 1e-3, *(1e-3 * share for share in cosine)])
    assert [rate for _, rate in rates][2:] == pytest.approx([5e-4 * share for share in cosine])


def test_the_rate_falls_to_a_tenth_at_milestones() -> None:
    module = task(schedule="step", milestones=(3, 5))
    assert [module.rate(step, 9) for step in range(6)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


# -- the adversary -------------------------------------------------------------------------------------------------


def test_the_discriminator_rests_before_its_start() -> None:
    watch = Watch()
    module = task(adversary={**ADVERSARY, "discriminator_start": 3})
    before = weights(module.loss)
    fit(module, batches(3), callbacks=[watch])
    assert not moved(module.loss, before)
    assert "train/discriminator" not in watch.losses[-1]
    fit(module := task(adversary={**ADVERSARY, "discriminator_start": 3}), batches(4), callbacks=[watch])
    assert moved(module.loss, before)
    assert watch.losses[-1]["train/discriminator"] > 0


def test_the_generator_gets_no_gradient_of_the_discriminators_loss_and_the_reverse() -> None:
    module = task(adversary=ADVERSARY, quantizer_weights={}, reconstruction_weight=0.0)
    rates = {"adversary": {**ADVERSARY, "learning_rate": 0.0}}
    still = task(quantizer_weights={}, reconstruction_weight=0.0, **rates)
    before = weights(still.loss.discriminator)
    fit(still, batches(2))
    assert all(torch.equal(p, before[name]) for name, p in still.loss.discriminator.named_parameters())
    before = weights(module.model)
    module.learning_rate = 0.0
    module.adversary = module.adversary.replace(learning_rate=1e-3)
    fit(module, batches(2))
    assert all(torch.equal(p, before[name]) for name, p in module.model.named_parameters())


@pytest.mark.parametrize("paired", [False, True], ids=["images", "pairs"])
def test_the_first_step_is_that_of_the_equations(paired: bool) -> None:
    """Generator and discriminator by hand, from the same weights and the same reconstructions."""
    images = batches(1)
    targets = batches(1, seed=1) if paired else images
    module, other = (
        task(adversary={**ADVERSARY, "lecam_weight": 0.0}),
        task(adversary={**ADVERSARY, "lecam_weight": 0.0}),
    )
    fit(module, [ImagePairs(images[0], targets[0])] if paired else images, precision="32-true")
    other.train()
    x = targets[0] * 2 - 1
    output = other.model(images[0] * 2 - 1)
    losses = output.quantized.losses
    generator = (output.reconstruction - x).abs().mean() + losses["codebook"] + 0.25 * losses["commitment"]
    generator = generator - 0.5 * other.loss.discriminator(output.reconstruction).mean()
    gradients = torch.autograd.grad(generator, list(other.model.parameters()))
    real, fake = other.loss.discriminator(x), other.loss.discriminator(output.reconstruction.detach())
    discriminator = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    others = torch.autograd.grad(discriminator, list(other.loss.discriminator.parameters()))
    for player, slopes, trained in (
        (other.model, gradients, module.model),
        (other.loss.discriminator, others, module.loss.discriminator),
    ):
        optimizer = torch.optim.AdamW(player.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        for parameter, slope in zip(player.parameters(), slopes):
            parameter.grad = slope
        optimizer.step()
        for (name, a), b in zip(player.named_parameters(), trained.parameters()):
            torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-6)


def test_the_adaptive_weight_uses_the_decoders_last_layer() -> None:
    watch = Watch()
    adversary = {**ADVERSARY, "adaptive_weight": True, "adaptive_weight_maximum": 0.125}
    module = task(adversary=adversary)
    assert module.last_layer_weight[0] is module.model.decoder[-2].weight
    fit(module, batches(3), callbacks=[watch])
    assert 0 < watch.losses[-1]["train/adversarial_weight"] <= 0.5 * 0.125 + 1e-6


def test_a_discriminator_of_a_file_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = PatchGANConfig(hidden_channels=4, num_layers=1).build()
    torch.save(trained.state_dict(), tmp_path / "discriminator.pt")
    module = task(adversary={**ADVERSARY, "discriminator_weights": str(tmp_path / "discriminator.pt")})
    assert all(torch.equal(a, b) for a, b in zip(module.loss.discriminator.parameters(), trained.parameters()))


def test_a_warm_up_raises_the_generators_adversarial_weight() -> None:
    watch = Watch()
    fit(
        task(adversary={**ADVERSARY, "discriminator_start": 1, "discriminator_warmup": 4}),
        batches(6),
        callbacks=[watch],
    )
    found = [losses.get("train/adversarial_weight", 0.0) for losses in watch.losses]
    assert found == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5])


@pytest.mark.parametrize(("own", "rates", "updates"), [(True, [0.5, 0.5, 0.5, 1, 1], 2), (False, [1, 1, 1, 1, 1], 5)])
def test_a_discriminator_counts_its_steps_by_its_own_clock_or_the_generators(
    own: bool, rates: list[float], updates: int
) -> None:
    seen: list[float] = []

    class Seen(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            seen.append(trainer.optimizers[1].param_groups[0]["lr"])

    adversary = {**ADVERSARY, "discriminator_start": 3, "own_clock": own}
    module = task(adversary=adversary, warmup_steps=2, schedule="constant", learning_rate=1e-3)
    run = fit(module, batches(5), callbacks=[Seen()])
    assert seen == pytest.approx([1e-3 * rate for rate in rates])  # of the update after each step
    assert {int(state["step"]) for state in run.optimizers[1].state.values()} == {updates}


def test_a_discriminator_may_have_a_warm_up_of_its_own() -> None:
    adversary = {**ADVERSARY, "discriminator_start": 1, "own_clock": True, "warmup_steps": 4}
    module = task(adversary=adversary, warmup_steps=2, schedule="constant", learning_rate=1.0)
    run = fit(module, batches(3))
    assert [player.param_groups[0]["lr"] for player in run.optimizers] == pytest.approx([1, 0.75])  # the next update's
    with pytest.raises(ValueError, match="warmup_steps"):
        task(adversary={**ADVERSARY, "warmup_steps": -1})


def test_a_schedule_of_its_own_clock_ends_with_the_run() -> None:
    adversary = {**ADVERSARY, "discriminator_start": 4, "own_clock": True}
    run = fit(task(adversary=adversary, schedule="linear", final_rate=0.1, learning_rate=1.0), batches(8))
    assert [player.param_groups[0]["lr"] for player in run.optimizers] == pytest.approx([0.1, 0.1])


# -- the running average -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 3])
def test_the_average_follows_its_equation_and_is_what_counts(tmp_path: Path, interval: int) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Seen(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
            seen.append(weights(module.model))

    module, images = task(ema_decay=0.3, ema_interval=interval), batches(4 * interval)
    run = fit(module, images, validation=batches(1, seed=1), callbacks=[Seen()], num_sanity_val_steps=0)
    expected = seen[interval - 1]
    for count, now in enumerate(seen[2 * interval - 1 :: interval], start=1):
        decay = min(0.3, (1 + count) / (10 + count))
        expected = {name: decay * value + (1 - decay) * now[name] for name, value in expected.items()}
    average = module.ema.module
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert moved(module.model, weights(average))
    x = batches(1, seed=1)[0]
    quality = zoo.metrics.image.psnr(module.unit(average(x * 2 - 1).reconstruction).clamp(0, 1), x).mean()
    assert float(run.callback_metrics["val/psnr"]) == pytest.approx(float(quality), rel=1e-5)
    run.save_checkpoint(tmp_path / "saved.ckpt")
    state = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["model.decoder.0.weight"], module.model.decoder[0].weight)
    assert torch.equal(state["ema.module.decoder.0.weight"], average.decoder[0].weight)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [VECTOR, {"quantizer": "fsq", "levels": [4, 4]}], ids=["vector", "fsq"])
def test_tokens_stay_when_the_decoder_alone_is_trained(changes: dict[str, Any]) -> None:
    module = task(changes, trainable="decoder", adversary={**ADVERSARY, "adaptive_weight": True}, ema_decay=0.5)
    images = batches(1)[0] * 2 - 1
    before, tokens = weights(module.model), module.model.encode(images)
    codes = module.model.codes(tokens)
    first = module.model.reconstruct(codes)
    fit(module, batches(3))
    stay = {name for name, value in module.model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if not name.startswith("decoder.")} <= stay
    assert not any(name.startswith("decoder.") and name.endswith("weight") for name in stay - {"decoder.0.weight"})
    assert all(torch.equal(a, b) for a, b in zip(module.model.encode(images).levels, tokens.levels))
    assert not torch.equal(module.model.reconstruct(codes), first)


def test_frozen_tokens_stay_though_their_codebook_moves_by_averages() -> None:
    module = task({**VECTOR, "codebook": {"kind": "ema"}}, trainable="decoder")
    before = weights(module.model.quantizer)
    fit(module, batches(3))
    assert not moved(module.model.quantizer, before)


@pytest.mark.parametrize("name", ["llamagen_vq", "maskbit"])
def test_the_decoder_is_found_in_any_architecture(name: str) -> None:
    small = {"channels": 8, "channel_multipliers": [1, 1], "blocks": 1, "norm_groups": 4}
    if name == "llamagen_vq":
        model = zoo.create_model("llamagen_vq_f16", decoder_channel_multipliers=[1, 1], latent_channels=8, **small)
        parts = ("decoder.", "from_codes.")
    else:
        model, parts = zoo.create_model("maskbit_lfq_10bit", **small), ("decoder.",)
    decoder, last = decoder_anatomy(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decoder} == {n for n in names.values() if n.startswith(parts)}
    assert names[id(last)] == "decoder.conv_out.weight"


def test_recomputation_changes_nothing() -> None:
    changes = {"channels": 8, "channel_multipliers": [1, 1], "blocks": 1, "norm_groups": 4, "latent_channels": 8}
    changes |= {"decoder_channel_multipliers": [1, 1], "quantizer": {"kind": "vector", "codebook_size": 30, "dim": 4}}

    def trained(recompute: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = ReconstructionTask(
            "llamagen_vq_f16", changes, quantizer_weights=WEIGHTS, recompute=recompute,
            adversary={**ADVERSARY, "adaptive_weight": True},
        )  # fmt: skip
        fit(module, batches(2))
        return weights(module)

    plain, recomputed = trained(False), trained(True)
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, msg=name)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true", "bf16-true"])
def test_precisions(precision: Any) -> None:
    module = task(adversary={**ADVERSARY, "adaptive_weight": True}, ema_decay=0.9)
    run = fit(module, batches(3), validation=batches(1), precision=precision)
    assert all(math.isfinite(value) for value in run.callback_metrics.values())
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_precision_that_scales_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="16-true"):
        fit(task(), batches(1), precision="16-true")


@pytest.mark.slow
def test_a_compiled_model_trains_the_same() -> None:
    plain, compiled = task(adversary=ADVERSARY, ema_decay=0.9), task(adversary=ADVERSARY, ema_decay=0.9, compile=True)
    for module in (plain, compiled):
        fit(module, batches(2))
    for (name, a), b in zip(plain.state_dict().items(), compiled.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-3, atol=1e-4)


# -- latent perturbation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("fsq", {"levels": (4, 4)}),
        ("lfq", {"bits": 6}),
        ("rvq", {"level": {"kind": "vector", "codebook_size": 12, "dim": 4}, "num_levels": 3}),
        ("grouped", {"group": {"kind": "vector", "codebook_size": 12, "dim": 2}, "num_groups": 2}),
    ],
)
def test_any_discrete_tokenizer_is_perturbed(kind: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantizer = QUANTIZERS[kind].from_dict(fields).build().eval()
    z = torch.randn(2, 6, quantizer.config.dim)
    levels = quantizer(z).levels
    torch.testing.assert_close(quantizer.indices_to_codes(*levels), quantizer(z).codes)
    found = perturbed_levels(quantizer, z, levels, 1.0, 3)
    assert len(found) == len(levels)
    for level, perturbed in zip(levels, found):
        changed = (level != perturbed).float().mean()
        assert 0.2 < changed < 1.0
    module = task({"quantizer": kind, **fields}, perturbation={"share": 0.5, "neighbours": 3})
    run = fit(module, batches(2), validation=batches(1))
    assert math.isfinite(run.callback_metrics["train/total"])


def test_the_temperature_of_a_gumbel_softmax_falls_as_half_a_cosine() -> None:
    seen: list[float] = []

    class Seen(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
            seen.append(module.model.quantizer.temperature)

    module = task(GUMBEL, temperature_annealing=(0.9, 0.1, 4))
    fit(module, batches(6), callbacks=[Seen()])
    assert seen == pytest.approx([0.9, 0.5 + 0.4 * 0.5**0.5, 0.5, 0.5 - 0.4 * 0.5**0.5, 0.1, 0.1])


def test_validation_is_not_perturbed() -> None:
    module = task(perturbation={"share": 1.0, "neighbours": 30})
    module.eval()
    x = batches(1)[0]
    assert torch.equal(module(x).reconstruction, module(x).reconstruction)
    module.train()
    with torch.no_grad():
        assert not torch.equal(module.model(x).reconstruction, module.model(x).reconstruction)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"adversary": {"discriminator_strat": 3}}, "no field discriminator_strat"),
        ({"adversary": {"discriminator_start": "soon"}}, "expected int, got 'soon'"),
        ({"adversary": {"discriminator": {"kind": "patchgam"}}}, "patchgan"),
        ({"adversary": {"discriminator": {"kind": "patchgan", "width": 3}}}, "no field width"),
        ({"adversary": {"discriminator_weights": "nowhere.pt"}}, "nowhere.pt"),
        ({"adversary": {"generator_objective": "wasserstein"}}, "non_saturating"),
        ({"perturbation": {"alpha": 1}}, "no field alpha"),
        ({"perturbation": {"neighbours": 0}}, "neighbours >= 1"),
        ({"perceptual": "vgg"}, "lpips"),
        ({"perceptual": {"lite0": 1.0}, "perceptual_files": {"lpips": "x.pth"}}, "lite0"),
        ({"perceptual": {"lpips": 1.0}, "perceptual_files": {"lpips": "nowhere.pth"}}, "nowhere.pth"),
        ({"init": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"trainable": "encoder"}, "all or decoder"),
        ({"schedule": "staircase"}, "cosine, constant, linear, exponential or step"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_interval": 0}, "ema_interval"),
        ({"recompute": True, "compile": True}, "recompute"),
        ({"quantizer_weights": {"comitment": 1.0}}, "commitment"),
        ({"reconstruction": "l3"}, "l1 or l2"),
        ({"temperature_annealing": (0.9, 0.1, 100)}, "gumbel, got vector"),
        ({"changes": GUMBEL, "temperature_annealing": (0.9, 0.0, 100)}, "temperatures > 0"),
        ({"changes": GUMBEL, "temperature_annealing": (0.9, 0.1, 0)}, "at least 1 step"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task(**settings)


def test_a_quantizer_that_cannot_be_perturbed_is_told() -> None:
    with pytest.raises(ValueError, match="at most 262144 codes"):
        task({"quantizer": "lfq", "bits": 20, "entropy": None}, perturbation={})


# -- it learns -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"quantizer": {"kind": "vector", "codebook_size": 64, "dim": 6}}, WEIGHTS),
        ({"quantizer": {"kind": "finite_scalar", "levels": (4, 4, 4)}}, {}),
        ({"quantizer": {"kind": "binary", "bits": 6}}, {"commitment": 0.25, "entropy": 0.1}),
    ],
    ids=["vector", "fsq", "lfq"],
)
def test_200_steps_lower_the_loss_and_no_codebook_dies(changes: dict[str, Any], weights: dict[str, float]) -> None:
    from sklearn.datasets import load_sample_images

    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images])
    crops = photos.permute(0, 3, 1, 2).unfold(2, 32, 26).unfold(3, 32, 38).permute(0, 2, 3, 1, 4, 5)
    images = crops.flatten(0, 2)[:512].float() / 255
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:256]].unflatten(
        0, (-1, 16)
    )
    watch = Watch()
    module = task(
        {**changes, "fine_channels": 16, "channels": 32}, quantizer_weights=weights, learning_rate=3e-3, warmup_steps=10
    )
    fit(module, images, max_steps=200, max_epochs=-1, callbacks=[watch])
    losses = [step["train/reconstruction"] for step in watch.losses]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    tokens = module.model.encode(images.flatten(0, 1) * 2 - 1)
    assert len(tokens.levels[0].unique()) > 0.5 * tokens.vocab_sizes[0]


@pytest.mark.parametrize("annealed", [("entropy",), ("commitment", "entropy")])
def test_annealed_losses_start_at_a_multiple_of_their_weights(annealed: tuple[str, ...]) -> None:
    quantizer_weights = {"commitment": 0.5, "entropy": 0.1}
    module = task(
        {"quantizer": "spherical_binary", "bits": 6}, quantizer_weights=quantizer_weights, annealed=annealed,
        entropy_annealing=(2.0, 10),
    )  # fmt: skip
    images = module.train().model_range(batches(1)[0])
    output = module.reconstructed(images)
    losses = output.quantized.losses
    extra = sum(quantizer_weights[name] * losses[name] for name in annealed)
    end, _ = module.generator_loss(images, output, 10)
    for step in (0, 5):
        total, _ = module.generator_loss(images, output, step)
        torch.testing.assert_close(total - end, 2 * (1 - step / 10) * extra)


def test_losses_without_a_weight_cannot_be_annealed() -> None:
    with pytest.raises(ValueError, match=r"annealed: expected names of \['codebook', 'commitment'\], got \['codes'\]"):
        task(annealed=("codes",))


def test_a_discriminator_that_starts_late_begins_as_after_gradients_of_zero() -> None:
    late = {**ADVERSARY, "discriminator_start": 3}
    module = task(adversary=late, learning_rate=1e-2, betas=(0.9, 0.99), schedule="constant")
    before = weights(module.loss.discriminator)
    run = fit(module, batches(4), max_steps=4)
    (first, *_) = module.loss.discriminator.parameters()
    assert int(run.optimizers[1].state[first]["step"]) == 4
    moves = (first.detach() - before[next(iter(before))]).abs()
    share = (1 - 0.9) / (1 - 0.9**4) / ((1 - 0.99) / (1 - 0.99**4)) ** 0.5  # of the rate; 1 in Adam's first step
    assert float(moves.max()) == pytest.approx(1e-2 * share, rel=1e-2)
