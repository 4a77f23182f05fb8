"""The recipes of the tokenizers of one dimension: each runs two steps small, the published ones at their siblings'
sizes; and what the tasks of prediction teach whom.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_task import loader, trainer

import zoo
from trainers.recipes import CONFIGS
from trainers.tasks import HaltingTask, ProxyTask, RollOutTask
from zoo.cli.training import run

FAMILIES = ("alit", "flextok", "karl", "one_d_piece", "semanticist", "spectral", "titok")
SETTINGS = {
    path.stem: yaml.safe_load(path.read_text())["model"]
    for family in FAMILIES
    for path in sorted(CONFIGS.glob(f"{family}_*.yaml"))
    if not path.stem.startswith("spectral_codec")
}
TASKS = {
    "alit": "RollOutTask", "flextok": "AdaptiveTask", "karl": "HaltingTask", "spectral": "AdaptiveTask"
}  # fmt: skip
SIZES = {"width": 16, "layers": 1, "heads": 2}
BASE = {"dim": 8, "channels": 8, "channel_multipliers": [1, 1], "blocks": 1, "norm_groups": 4}
CODEBOOK = {"kind": "codebook", "codebook_size": 16, **BASE}
VECTOR = {"kind": "vector", "codebook_size": 32, "dim": 4, "metric": "cosine"}
TITOK = {
    "image_size": 32, "patch_size": 2, "num_tokens": 8, "encoder": SIZES, "decoder": SIZES, "quantizer": VECTOR,
    "proxy": {key: value for key, value in CODEBOOK.items() if key != "kind"},
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "alit": {
        "image_size": 32, "rollouts": 2, "rollout_tokens": 4, "decoder_positions": 8, "encoder": SIZES,
        "decoder": SIZES, "base": CODEBOOK, "quantizer": VECTOR,
    },
    "karl": {
        "image_size": 32, "most_tokens": 16, "num_tokens": 8, "halting_width": 8, "position_table": 16,
        "encoder": SIZES, "decoder": SIZES, "base": CODEBOOK, "quantizer": VECTOR,
    },
    "flextok": {
        "image_size": 32, "num_tokens": 8, "encoder": SIZES, "decoder": SIZES, "steps": 2,
        "base": {"kind": "variational", **BASE, "attention": [False, False], "scale": 1.0},
    },
    "semanticist": {
        "image_size": 32, "num_tokens": 8, "patch_size": 8, "encoder": SIZES, "decoder": SIZES, "steps": 2,
        "base": {"kind": "variational", **BASE, "attention": [False, False], "scale": 1.0},
    },
    "spectral": {
        "channels": [8, 8], "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "latent_channels": 8, "hidden": 8
    },
    "titok": TITOK,
    "one_d_piece": TITOK,
}  # fmt: skip
TEACHER = {
    "channels": 8, "widths": [8, 8], "blocks": 1, "norm_groups": 4, "attention": [False, False],
    "quantizer": {"kind": "vector", "codebook_size": 16, "dim": 8},
}  # fmt: skip
COUNTS = [2, 4, 12]  # of KARL's first pass


def family_of(name: str) -> str:
    return next(family for family in FAMILIES if name.startswith(family))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shipped_recipe_runs_two_steps(name: str, noise_photos: Path, small_dinov2: Path, tmp_path: Path) -> None:
    settings, family = SETTINGS[name]["init_args"], family_of(name)
    adversary = settings.get("adversary")
    if adversary is not None:
        kind = adversary["discriminator"]["kind"]
        small = {
            "kind": kind,
            "hidden_channels": 32,
            **{"blur": {"num_stages": 1}, "patchgan": {"num_layers": 1}}[kind],
        }
        adversary = {**adversary, "discriminator": small, "discriminator_start": 1}
    own = []
    if SETTINGS[name]["class_path"].endswith("ProxyTask"):
        own = ["--model.init_args.teacher_init=random", f"--model.init_args.teacher_changes={json.dumps(TEACHER)}"]
    if SETTINGS[name]["class_path"].endswith("AlignmentTask"):
        own = ["--model.layer=1", "--model.projector_width=16", f"--model.teacher_weights={small_dinov2}"]
        own += ["--model.teacher={width: 128, layers: 4, heads: 4}"]
    if family == "karl":
        own = [f"--model.init_args.first_counts={json.dumps(COUNTS)}"]
    terms = settings.get("perceptual")
    perceptual = {"ms_ssim": 1.0} if isinstance(terms, dict) and "ms_ssim" in terms else None
    run(
        "fit",
        [
            f"--config={name}", f"--data.init_args.train={noise_photos}", f"--data.init_args.val={noise_photos}",
            "--data.init_args.size=32", "--data.init_args.batch_size=2", "--data.init_args.workers=0",
            f"--model.init_args.changes={json.dumps(SMALL[family])}",
            f"--model.init_args.perceptual={json.dumps(perceptual)}",
            f"--model.init_args.adversary={json.dumps(adversary)}", *own, "--trainer.max_steps=2",
            "--trainer.accelerator=cpu", "--trainer.accumulate_grad_batches=1",
            "--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total")]
    assert len(rows) == 2
    assert all(np.isfinite(float(row["train/total"])) for row in rows)
    if adversary is not None:
        assert float(rows[1]["train/discriminator"]) > 0
    model = zoo.create_model(f"local-dir:{tmp_path / 'version_0' / 'model'}")
    x = torch.rand(1, 3, 32, 32)
    assert model.decode(model.encode(x)).shape == x.shape


# -- who learns what -----------------------------------------------------------------------------------------------


def moved(task: Any, images: torch.Tensor, steps: int = 1) -> set[str]:
    """The modules of the model whose weights a few steps change."""
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    run_of = trainer(max_steps=steps)
    run_of.fit(task, loader(images))
    after = task.model.state_dict()
    return {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


def images(batches: int = 1, size: int = 2) -> torch.Tensor:
    return torch.rand(batches, size, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def proxy_task(name: str = "titok_l32", **settings: Any) -> ProxyTask:
    torch.manual_seed(0)
    return ProxyTask(
        name, teacher_init="random", teacher_changes=TEACHER, changes=TITOK, learning_rate=1e-2,
        quantizer_weights={"codebook": 1.0, "commitment": 0.25}, **settings,
    )  # fmt: skip


def test_the_proxy_rests_and_its_codes_are_learnt() -> None:
    task = proxy_task()
    batch = images()
    signal = task.model_range(batch[0])
    _, before = task.generator_loss(signal, task.reconstructed(signal), 0)
    proxy: Any = task.teacher.network
    assert torch.equal(task.model.proxy_codebook.weight, proxy.quantizer.codebook.weight)
    changed = moved(task, batch.expand(60, -1, -1, -1, -1), 60)
    assert changed == {"encoder", "to_latent", "decoder", "to_logits", "quantizer"}
    _, after = task.generator_loss(signal, task.reconstructed(signal), 60)
    assert float(after["proxy"]) < 0.8 * float(before["proxy"])
    assert float(before["proxy"]) == pytest.approx(np.log(16), rel=0.5)
    codes = proxy.encode(batch[0]).indices
    logits = task.model.proxy_logits(task.model.quantizer(task.model.latent(signal)).codes)
    assert float((logits.argmax(1) == codes).float().mean()) == pytest.approx(float(after["proxy_accuracy"]))


def test_tails_are_dropped_of_models_whose_prefixes_decode_alone() -> None:
    task = proxy_task("one_d_piece_l256", tail_drop={"distribution": "uniform", "each_item": False}).train()
    signal = images()[0]
    torch.manual_seed(0)
    drawn = {float(task.reconstructed(signal).reconstruction.detach().sum()) for _ in range(40)}
    assert len(drawn) == 8  # numbers of tokens
    with pytest.raises(ValueError, match="tail_drop: expected None"):
        proxy_task(tail_drop={})


def test_teachers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of two stages, with a proxy, got titok_bl64_vq8k"):
        ProxyTask("titok_bl64_vq8k", changes={**TITOK, "proxy": None})
    wide = {**TEACHER, "quantizer": {"kind": "vector", "codebook_size": 17, "dim": 8}}
    with pytest.raises(ValueError, match=r"teacher: expected a grid of \(16, 16\) codes out of \(16,\), got .*17"):
        ProxyTask("titok_l32", teacher_init="random", teacher_changes=wide, changes=TITOK)
    deep = {**TEACHER, "blocks": 2}
    with pytest.raises(ValueError, match="expected a decoder of the sizes in titok_l32's config"):
        ProxyTask("titok_l32", teacher_init="random", teacher_changes=deep, changes=TITOK)


def rollout_task(weights: tuple[float, ...] | None) -> RollOutTask:
    torch.manual_seed(0)
    return RollOutTask("alit_small_vqgan_quantised", weights, changes=SMALL["alit"], learning_rate=1e-3)


def test_the_base_of_roll_outs_rests_in_distillation_and_learns_in_fine_tuning() -> None:
    assert "base" not in moved(rollout_task((2.0, 1.0)), images())
    task = rollout_task(None)
    assert "base" in moved(task, images())


def test_distillation_weighs_the_predictions_of_each_roll_out() -> None:
    signal = images()[0]
    totals = []
    for weights in ((2.0, 1.0), (3.0, 1.0), (2.0, 2.0), (2.0,)):
        task = rollout_task(weights).train()
        torch.manual_seed(1)
        total, losses = task.generator_loss(signal, task.reconstructed(signal), 0)
        totals.append(float(total.detach()))
        assert {"nll", "code"} <= set(losses)
    rows = list(rollout_task(None).model.roll_out(signal, predict=True))
    assert len(rows) == 2
    assert totals[1] > totals[0] < totals[2] == pytest.approx(totals[3])
    with pytest.raises(ValueError, match="at least one weight"):
        rollout_task(())


def test_fine_tuning_takes_one_roll_out_a_step_in_turn() -> None:
    task = rollout_task(None)
    counts: list[int] = []
    task.model.quantizer.register_forward_hook(lambda module, given, found: counts.append(found.codes.shape[1]))
    trainer(max_steps=3).fit(task, loader(images(3)))
    assert counts == [4, 4, 8, 4]  # the second step rolls out twice


def halting_task(**settings: Any) -> HaltingTask:
    torch.manual_seed(0)
    return HaltingTask(
        "karl_small_vqgan_quantised", changes=SMALL["karl"], first_counts=(4,), learning_rate=1e-2, **settings
    )


@pytest.mark.parametrize("kind", ["proxy", "rollouts", "halting"])
def test_norms_and_biases_do_not_decay(kind: str) -> None:
    task: Any = {"proxy": proxy_task, "rollouts": lambda: rollout_task(None), "halting": halting_task}[kind]()
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    decayed, plain = task.generator_groups()
    optimizer = torch.optim.AdamW([decayed, plain], lr=0.1, weight_decay=0.5)
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that decay alone moves it
    optimizer.step()
    for name, value in task.model.named_parameters():
        share = 0.95 if value.requires_grad and value.ndim > 1 else 1
        torch.testing.assert_close(value, share * before[name], msg=name)


def test_tokens_that_the_first_pass_did_without_learn_to_halt() -> None:
    task = halting_task()
    assert moved(task, images().expand(80, -1, -1, -1, -1), 80).isdisjoint({"base"})
    signal = images()[0]
    with torch.no_grad():
        row = task.model.row(signal)
    halting = row.halting.sigmoid().mean(0)
    assert float(halting[:4].max()) < 0.5 < float(halting[4:].min())


def test_errors_that_were_reached_are_asked_for_less_often() -> None:
    task = halting_task().train()
    before = task.wanted.clone()
    assert float(before.sum()) == pytest.approx(1.0)
    assert int((before > 0).sum()) == 5  # up to 0.04
    task.model.base.decode = lambda latent: images()[0]  # type: ignore[method-assign]  # a perfect first pass
    task.reconstructed(images()[0])
    torch.testing.assert_close(task.wanted, before)  # all became rarer alike
    assert "wanted" in task.state_dict()


def test_fine_tuning_halts_too_and_trains_the_base() -> None:
    task = halting_task(stage="finetuning")
    assert {"base", "to_halting"} <= moved(task, images())


def test_wrong_settings_of_the_passes_are_told() -> None:
    with pytest.raises(ValueError, match="expected one that halts tokens, got compact_f8"):
        HaltingTask("compact_f8")
    with pytest.raises(ValueError, match="expected one that rolls out, got compact_f8"):
        RollOutTask("compact_f8")
    with pytest.raises(ValueError, match="stage: expected distillation or finetuning, got 'both'"):
        halting_task(stage="both")
    with pytest.raises(ValueError, match=r"wanted_error: expected at least 0.005, got 0.001"):
        halting_task(wanted_error=0.001)
    with pytest.raises(ValueError, match=r"first_counts: expected a number from 1 to 16, got \[17\]"):
        HaltingTask("karl_small_vqgan_quantised", changes=SMALL["karl"], first_counts=(17,))
