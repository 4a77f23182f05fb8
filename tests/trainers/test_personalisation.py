"""Words of one concept are learned by their recipes through a pipeline of diffusers, which stays as it is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_pipeline import WIDTH, clip_tokenizer, stable_diffusion

import zoo
from tokenizers_visual.inversion.batex import choose_basis
from trainers.recipes import CONFIGS, find_recipe
from trainers.tasks import PersonalisationTask
from zoo.cli.training import run

RECIPES = (
    "textual_inversion_published", "batex_published", "inspiration_tree_published", "neti_published",
    "core_ti_described",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(clip_tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def write_photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def arguments(recipe: str, pipeline: str, photos: Path, out: Path) -> list[str]:
    """Of a recipe made small."""
    changes = ["--model.init_args.changes={size: 20}"] if "batex" in recipe else []
    return [
        f"--config={recipe}", f"--model.init_args.pipeline={pipeline}", f"--data.init_args.train={photos}",
        "--data.init_args.size=8", "--data.init_args.batch_size=2", *changes, "--trainer.accelerator=cpu",
        "--trainer.precision=32-true", "--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", f"--out={out}",
    ]  # fmt: skip


def fit(recipe: str, pipeline: str, photos: Path, out: Path, *more: str) -> Path:
    run("fit", [*arguments(recipe, pipeline, photos, out), *more])
    return sorted(out.glob("version_*"))[-1]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/total")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_words_that_a_pipeline_paints_with(
    recipe: str, pipeline: str, photos: Path, tmp_path: Path
) -> None:
    folder = fit(recipe, pipeline, photos, tmp_path)
    assert len(rows(folder)) == 2
    assert all(np.isfinite(float(row["train/total"])) for row in rows(folder))
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert all(name.startswith("model.") for name in saved["state_dict"])  # the pipeline is no part of it
    model = zoo.create_model(f"local-dir:{folder / 'model'}")
    assert (model.config.backbone, model.config.word_dim) == (pipeline, WIDTH)
    embeddings = folder / "model/learned_embeds.safetensors"
    assert embeddings.is_file() == (recipe != "neti_published")
    if embeddings.is_file():
        (words,) = load_file(embeddings).values()
        assert torch.equal(words.reshape(-1, WIDTH), model().embeddings[0])
        loaded = StableDiffusionPipeline.from_pretrained(pipeline)
        loaded.load_textual_inversion(str(embeddings.parent), weight_name=embeddings.name, local_files_only=True)
        assert loaded.tokenizer.convert_tokens_to_ids("<concept>") >= 49408


def task(pipeline: str, model: str = "textual_inversion", **settings: Any) -> PersonalisationTask:
    torch.manual_seed(0)
    return PersonalisationTask(model, pipeline, **{"initial": "cat", **settings})


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model", ["textual_inversion", "batex", "neti"])
def test_the_words_alone_get_gradients_and_the_loss_falls(pipeline: str, model: str) -> None:
    learner = task(pipeline, model, changes={"size": 20} if model == "batex" else None)
    parts = (learner.pipeline.unet, learner.pipeline.vae, learner.pair.model)
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    optimizer, values = torch.optim.AdamW(learner.parameters(), 0.02), []
    for _ in range(12):
        torch.manual_seed(1)  # the same noise
        loss = learner.train().losses(images())["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]
    for part, state in zip(parts, before):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())
        assert not part.training
    assert {name.partition(".")[0] for name, _ in learner.named_parameters()} == {"model"}


def test_words_start_from_the_initial_ones(pipeline: str) -> None:
    one = task(pipeline)
    table = one.pair.embedding.weight.detach()
    cat = int(one.initial)
    assert torch.equal(one.model().embeddings[0, 0], table[cat])
    two = task(pipeline, "inspiration_tree", initial="cat dog")
    assert torch.equal(two.model().embeddings[0], table[two.initial])
    basis = task(pipeline, "batex", changes={"size": 5})
    assert torch.equal(basis.model.ids, choose_basis(table, cat, 5))
    torch.testing.assert_close(basis.model().embeddings[0, 0], table[basis.model.ids[0]])
    assert task(pipeline, "neti").model.config.norm == pytest.approx(float(table[cat].norm()))


def test_cores_regularisers_see_the_context_alone(pipeline: str) -> None:
    """At the start the word is the real one, and nothing is disturbed; behind another word the context moves."""
    templates = ["a photo of $ in the desert"]
    learner = task(pipeline, "core_ti", context_weight=2.0, attention_weight=3.0, templates=templates)
    losses = learner.losses(images())
    assert float(losses["context"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(losses["attention"].detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        learner.model.rows.copy_(torch.randn(1, WIDTH))
    losses = learner.losses(images())
    assert losses["context"] > 1e-4
    assert losses["attention"] > 0
    total = losses["denoising"] + 2 * losses["context"] + 3 * losses["attention"]
    torch.testing.assert_close(losses["total"], total)
    behind = task(pipeline, "core_ti", context_weight=1.0, templates=["a photo of a $"])
    with torch.no_grad():
        behind.model.rows.copy_(torch.randn(1, WIDTH))
    context = behind.losses(images())["context"].detach()
    assert float(context) == pytest.approx(0, abs=1e-6)  # what stands before the word sees nothing


def test_rescaled_words_keep_the_norm_of_the_initial_one(pipeline: str, photos: Path, tmp_path: Path) -> None:
    folder = fit("core_ti_described", pipeline, photos, tmp_path, "--model.init_args.initial=cat")
    model = zoo.create_model(f"local-dir:{folder / 'model'}")
    start = task(pipeline)
    real = start.pair.embedding.weight[int(start.initial)]
    assert float(model().embeddings.norm()) == pytest.approx(float(real.norm()), rel=1e-4)
    assert not torch.allclose(model().embeddings[0, 0], real)


def test_noisy_times_are_drawn_more_often(pipeline: str) -> None:
    flat, sloped = task(pipeline).time_weights, task(pipeline, time_slope=0.5).time_weights
    assert torch.allclose(flat, flat[0])
    assert float(sloped[-1] / sloped[0]) == pytest.approx(3, rel=1e-2)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(pipeline: str, photos: Path, tmp_path: Path) -> None:
    name = "textual_inversion_published"
    whole = rows(fit(name, pipeline, photos, tmp_path / "whole", "--trainer.max_steps=3"))
    fit(name, pipeline, photos, tmp_path / "parts", "--trainer.max_steps=1")
    rest = rows(fit(name, pipeline, photos, tmp_path / "parts", "--trainer.max_steps=3", "--ckpt_path=last"))
    assert [float(row["train/total"]) for row in rest] == pytest.approx(
        [float(row["train/total"]) for row in whole[1:]], rel=1e-4
    )


def test_what_does_not_fit_is_refused(pipeline: str) -> None:
    def refused(message: str, model: str = "textual_inversion", **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            task(pipeline, model, **settings)

    refused("expected words of one concept, got lincir_vit_l14", "lincir_vit_l14", changes={"image_dim": 8})
    refused(r"expected one \$ in each, got 'a photo'", templates=["a photo"])
    refused("expected one id, or 1", initial="a black cat")
    refused("expected one token, got 3", "batex", initial="a black cat", changes={"size": 4})
    refused("expected a model of one word", "inspiration_tree", initial="cat cat", context_weight=1.0)


def test_every_recipe_of_this_task_is_run_here() -> None:
    named = {path.stem for path in CONFIGS.glob("*.yaml") if "PersonalisationTask" in path.read_text()}
    assert named == set(RECIPES)
    assert all(find_recipe(name).is_file() for name in RECIPES)
