"""Projectors and dictionaries learn by their recipes; all that does not learn stays as it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from word_recipes import PIXELS, Tiny

import trainers.tasks
import zoo
from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.discriminative_class_tokens import classify
from tokenizers_visual.inversion.domain_agnostic_e4t import nearest_token_loss, vocabulary
from tokenizers_visual.inversion.hooks import outputs_of
from tokenizers_visual.inversion.rtd import text_encoder_state
from trainers.data import CodedImageData, ConceptData, GarmentData, NoiseData
from trainers.data.rows import CaptionedImages, CodedImages, ConceptImages, Garments
from trainers.recipes import CONFIGS, create_task
from trainers.tasks import ClassTokenTask, DictionaryTask, ISATask, ProjectionTask, TokenVerseTask
from zoo.cli.training import run
from zoo.media import MediaError

TASKS = ("DictionaryTask", "ISATask", "ProjectionTask", "ClassTokenTask", "TokenVerseTask")
RECIPES = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if any(f"tasks.{task}\n" in path.read_text() for task in TASKS)
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def totals(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/total", "train/total_step") if row.get(name)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_two_steps(recipe: str, tiny: Tiny, tmp_path: Path) -> None:
    run("fit", tiny.arguments(recipe, tmp_path))
    folder = tmp_path / "version_0"
    assert len(totals(folder)) == 2
    assert np.isfinite(totals(folder)).all()
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    model = zoo.create_model(f"local-dir:{folder / 'model'}")
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"model.{name}"])


def test_every_published_recipe_has_a_small_sibling() -> None:
    large = [name for name in RECIPES if name.endswith(("_published", "_described"))]
    assert len(large) == 8
    for name in large:
        family = name.rpartition("_")[0]
        assert {f"{family}_{end}" for end in ("photos", "captions", "here")} & set(RECIPES)


def test_a_recipe_is_found_by_the_model(tiny: Tiny) -> None:
    folder = tiny.folder
    task = create_task("ladi_vton", pipeline=str(folder / "inpainting"), clip=tiny.clip, changes={"heads": 2})
    assert isinstance(task, ProjectionTask)
    assert (task.learning_rate, task.warmup_steps) == (1e-5, 500)
    assert isinstance(create_task("isa", "photos", clip=tiny.clip, encoder_weights="random"), ISATask)
    with pytest.raises(ValueError, match="vilex_photos"):
        create_task("vilex")


# -- frozen means frozen -------------------------------------------------------------------------------------------


def frozen(task: Any) -> dict[str, nn.Module]:
    """The parts of a task that must not move."""
    parts: dict[str, nn.Module] = {}
    if isinstance(task, ProjectionTask | ClassTokenTask):
        parts |= {"unet": task.pipeline.unet, "vae": task.pipeline.vae, "text encoder": task.pair}
    if isinstance(task, ISATask):
        parts["clip"] = task.pair
    if isinstance(task, ProjectionTask) and hasattr(task.model, "features"):
        parts["image encoder"] = task._clips[0]
    if isinstance(task, ProjectionTask) and task.identity is not None:
        parts["recogniser"] = task.identity.recogniser.network
    if isinstance(task, TokenVerseTask):
        names = ("transformer", "vae", "text_encoder", "text_encoder_2")
        parts |= {name: getattr(task.pipeline, name) for name in names}
    if isinstance(task, ClassTokenTask):
        parts["classifier"] = task._classifiers[0]
    return parts


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_does_not_learn_stays_as_it_is(
    recipe: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    task_class = getattr(trainers.tasks, next(name for name in TASKS if f".{name}\n" in text_of(recipe)))
    start = task_class.on_fit_start

    def noting(task: Any) -> None:
        start(task)
        seen["task"], seen["before"] = task, {name: state_of(part) for name, part in frozen(task).items()}
        seen["own"] = state_of(task)

    monkeypatch.setattr(task_class, "on_fit_start", noting)
    run("fit", [*tiny.arguments(recipe, tmp_path), "--model.init_args.learning_rate=0.01"])
    task = seen["task"]
    for name, part in frozen(task).items():
        after = part.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in seen["before"][name].items()), name
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters()), name
        inner = part.model if isinstance(part, ClipPair) else part
        assert not any(module.training for module in inner.modules()), name
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, seen["own"][name])}
    learns = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert moved
    assert moved <= learns | {name for name, _ in task.named_buffers()}  # of the light encoder's norms
    saved = torch.load(tmp_path / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert learns <= set(saved)
    assert not any(name.startswith(("_", "pipeline", "pair", "general")) for name in saved)


def text_of(recipe: str) -> str:
    return (CONFIGS / f"{recipe}.yaml").read_text()


def test_an_image_encoder_that_learns_does_so_more_slowly_and_without_its_texts(tiny: Tiny, tmp_path: Path) -> None:
    given = [*tiny.arguments("vilex_photos", tmp_path), "--model.init_args.warmup_steps=0"]
    run("fit", [*given, "--model.init_args.learning_rate=0.01", "--model.init_args.encoder_rate=0.5"])
    folder = tmp_path / "version_0"
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    rates = [group["initial_lr"] for group in saved["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([0.01, 0.005])
    exported, task = load_file(folder / "model/image_encoder.safetensors"), vilex(tiny, encoder_rate=0.5)
    task.configure_model()
    whole = task.clip.model.state_dict()
    assert set(exported) == {name for name in whole if name.startswith("visual.")}
    assert any(not torch.equal(value, whole[name]) for name, value in exported.items())
    assert not set(text_encoder_state(task.clip)) & set(exported)
    assert {k.removeprefix("image_encoder.model.") for k in saved["state_dict"] if "encoder.model" in k} == set(
        exported
    )


def test_the_dictionary_learns_with_both_encoders_and_its_scale_keeps_its_range(tiny: Tiny, tmp_path: Path) -> None:
    given = [*tiny.arguments("fdt_published", tmp_path), "--model.init_args.warmup_steps=0"]
    run("fit", [*given, "--model.init_args.scale_range=[3.0, 3.1]", "--model.init_args.learning_rate=0.5"])
    folder = tmp_path / "version_0"
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert 3 <= float(saved["model.logit_scale"]) <= 3.1
    texts = load_file(folder / "model/text_encoder.safetensors")
    assert {f"text_encoder.{name}" for name in texts} == {name for name in saved if name.startswith("text_encoder.")}
    groups = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


# -- learning ------------------------------------------------------------------------------------------------------


def images(count: int = 2, size: int = PIXELS) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def projection(tiny: Tiny, model: str, pipeline: str = "pipeline", **settings: Any) -> ProjectionTask:
    torch.manual_seed(0)
    return ProjectionTask(model, str(tiny.folder / pipeline), **settings)


def vilex(tiny: Tiny, **settings: Any) -> ProjectionTask:
    return projection(tiny, "vilex", clip=tiny.clip, changes={"words": 5, "heads": 2}, **settings)


def e4t(tiny: Tiny, **settings: Any) -> ProjectionTask:
    return projection(
        tiny, "domain_agnostic_e4t", clip=tiny.clip, **{"initial": "cat", "changes": {"hidden_dim": 8}, **settings}
    )


def ladi_vton(tiny: Tiny, **settings: Any) -> ProjectionTask:
    changes = {"words": 2, "heads": 2, "mlp_dim": 16, "hidden_dim": 16, "dropout": 0.0}
    return projection(tiny, "ladi_vton", "inpainting", clip=tiny.clip, changes=changes, **settings)


def precise_control(tiny: Tiny, **settings: Any) -> ProjectionTask:
    changes = {"styles": 3, "style_dim": 8, "heads": 2, "head_dim": 4, "depth": 2}
    return projection(tiny, "precise_control", initial="face", changes=changes, **settings)


def isa(tiny: Tiny, **settings: Any) -> ISATask:
    torch.manual_seed(0)
    fields = {"encoder": "mobilenetv3_small_050", "image_dim": 288, "words": 2, "hidden_dim": 8}
    return ISATask(
        "isa", clip=tiny.clip, encoder_weights="random", **{"changes": fields, "local_weight": 0.5, **settings}
    )


def dictionary(**settings: Any) -> DictionaryTask:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "joint_dim": 8, "text_dim": 16}
    changes = {**sizes, "codebook_size": 32, "dim": 8, "temperature": 1.0}
    return DictionaryTask(changes=changes, text_layers=1, text_heads=2, **settings)


def garments(count: int = 2) -> Garments:
    masks = torch.zeros(count, 1, PIXELS, PIXELS)
    masks[:, :, 2:6] = 1
    return Garments(images(count), images(count).flip(0), masks, ("dresses", "upper_body")[:count])


def batch_of(name: str) -> Any:
    codes = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))
    return {
        "ladi_vton": garments(), "precise_control": CodedImages(images(), codes), "isa": images(4, 32),
        "dictionary": CaptionedImages(images(4, 16), ("a dog", "two cats", "a red car", "the house")),
    }.get(name, images())  # fmt: skip


MAKERS: dict[str, Any] = {
    "vilex": vilex, "e4t": e4t, "ladi_vton": ladi_vton, "precise_control": precise_control, "isa": isa,
    "dictionary": lambda _: dictionary(),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_the_loss_falls(name: str, tiny: Tiny) -> None:
    task = MAKERS[name](tiny).train()
    optimizer, values = torch.optim.AdamW(task.parameters(), 0.01), []
    for _ in range(12):
        torch.manual_seed(1)  # the same noise
        loss = task.losses(batch_of(name))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_captions_find_their_images_by_the_dictionary() -> None:
    """Twelve images of four colours, half of them unseen."""
    colours = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.9, 0.1), "blue": (0.1, 0.1, 0.9), "white": (0.9, 0.9, 0.9)}

    def batch(seed: int) -> CaptionedImages:
        generator = torch.Generator().manual_seed(seed)
        plain = torch.tensor(list(colours.values()))[:, :, None, None]
        noise = 0.1 * torch.rand(4, 3, 16, 16, generator=generator)
        return CaptionedImages((plain + noise).clamp(0, 1), tuple(f"a {name} square" for name in colours))

    task = dictionary().train()
    optimizer = torch.optim.AdamW(task.parameters(), 3e-3)
    for step in range(60):
        loss = task.losses(batch(step))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step()
    task.eval()
    unseen = batch(1000)
    with torch.no_grad():
        words, padding = task.text_encoder(unseen.texts)
        texts = task.model.ground(words, "text", padding).features
        patches, _ = task.model.image_features((unseen.images - 0.45) / 0.225)
        found = task.model.logits(task.model.ground(patches, "image").features, texts).argmax(1)
    assert found.tolist() == [0, 1, 2, 3]


# -- what each loss sees -------------------------------------------------------------------------------------------


def total(task: Any, batch: Any) -> float:
    torch.manual_seed(1)
    with torch.no_grad():
        return float(task.eval().losses(batch)["total"])


def test_garments_are_read_and_persons_painted(tiny: Tiny) -> None:
    task, batch = ladi_vton(tiny), garments()
    with torch.no_grad():
        task.model.layers[-1].weight.mul_(30)
    before = total(task, batch)
    other = Garments(batch.images, 1 - batch.garments, batch.masks, batch.categories)
    assert total(task, other) != before  # through the words alone
    hidden = batch.images.clone()
    hidden[:, :, 2:6] = 0.5
    masked = [task._masked(Garments(shown, batch.garments, batch.masks, batch.categories)) for shown in seeded(hidden)]
    shown = [task._masked(batch) for _ in seeded(None)]
    assert torch.equal(masked[0], shown[0])  # what is to be painted is not told
    assert torch.equal(shown[0][:, :1], batch.masks)
    named = Garments(batch.images, batch.garments, batch.masks, ("dresses", "lower_body"))
    assert total(task, named) != before
    with pytest.raises(ValueError, match="expected one of dresses, upper_body, lower_body, got 'hat'"):
        total(task, Garments(batch.images, batch.garments, batch.masks, ("hat", "dresses")))


def seeded(value: Any) -> list[Any]:
    torch.manual_seed(5)
    return [value]


def test_words_of_faces_follow_code_and_time(tiny: Tiny) -> None:
    task, batch = precise_control(tiny, norm_weight=0.5), batch_of("precise_control")
    early, late = (task._words(batch, torch.full((2,), time)) for time in (10, 900))
    assert not torch.allclose(early[0].embeddings, late[0].embeddings)
    changed = CodedImages(batch.images, batch.codes + 1)
    assert not torch.allclose(task._words(changed, torch.full((2,), 10))[0].embeddings, early[0].embeddings)
    torch.manual_seed(1)
    losses = task.losses(batch)
    torch.testing.assert_close(losses["total"], losses["denoising"] + 0.5 * losses["norm"])


def test_words_must_lead_to_the_same_person(tiny: Tiny) -> None:
    task = precise_control(tiny, recogniser=tiny.recogniser, identity_weight=3.0)
    losses = task.losses(batch_of("precise_control"))
    torch.testing.assert_close(losses["total"], losses["denoising"] + 3 * losses["identity"])
    assert 0 < losses["identity"].item() < 2
    losses["identity"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.model.layers.parameters())
    assert all(parameter.grad is None for parameter in task.identity.recogniser.network.parameters())
    assert not any("recogniser" in name for name in task.state_dict())
    assert "identity" not in precise_control(tiny).losses(batch_of("precise_control"))


def test_words_start_near_to_the_class_and_are_held_there(tiny: Tiny) -> None:
    task = e4t(tiny, norm_weight=2.0, nearest_weight=3.0, nearest_count=4, nearest_temperature=0.1)
    cat = task.pair.embedding.weight[int(task.ids_of("cat"))].detach()
    assert torch.equal(task.model.class_word, cat)
    with outputs_of(task.model) as words, outputs_of(task.model.head) as moves:
        torch.manual_seed(1)
        losses = task.losses(images())
    rows = words[0][:, 0]
    torch.testing.assert_close(rows, cat + 0.1 * moves[0])
    expected = losses["denoising"] + 2 * losses["norm"] + 3 * losses["nearest"]
    torch.testing.assert_close(losses["total"], expected)
    torch.testing.assert_close(losses["norm"], rows.square().sum())
    table = task.pair.embedding.weight.detach()[:49406]  # start and end are the last two, and padding is the end
    assert torch.equal(vocabulary(task.pair), table)
    nearest = nearest_token_loss(rows, table, count=4, temperature=0.1).mean()
    torch.testing.assert_close(losses["nearest"], nearest)


def test_both_paths_of_the_denoiser_count_and_its_weights_are_moved(tiny: Tiny) -> None:
    soft, both, hard = (total(e4t(tiny, blend=blend), images()) for blend in (1.0, 0.5, 0.0))
    assert len({soft, both, hard}) == 3
    task = e4t(tiny)
    before = total(task, images())
    torch.nn.init.normal_(task.model.hypernetwork.up.weight)
    assert total(task, images()) != before


def test_a_model_is_tuned_on_one_image(tiny: Tiny, tmp_path: Path) -> None:
    run("fit", tiny.arguments("domain_agnostic_e4t_photos", tmp_path))
    trained = tmp_path / "version_0/model/model.safetensors"
    task = e4t(tiny, init=str(trained), initial="object")
    known = load_file(trained)
    assert all(torch.equal(value, known[name]) for name, value in task.model.state_dict().items())
    assert torch.isfinite(task.losses(images(1))["total"])


def test_tails_are_dropped_in_training(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task = vilex(tiny)
    words = task._words(images(), torch.zeros(2))[0]
    kept = []
    for _ in range(20):
        states = task._states(images(), words)
        (gradient,) = torch.autograd.grad(states.square().sum(), words.embeddings, retain_graph=True)
        kept.append((gradient.abs().sum(-1) > 0).sum(1))
    counts = torch.stack(kept)
    assert set(counts.flatten().tolist()) == {1, 2, 3, 4, 5}
    assert (counts[:, 0] != counts[:, 1]).any()


def test_each_sentence_leads_to_its_image_and_each_word_to_patches(tiny: Tiny) -> None:
    task = isa(tiny)
    losses = task.losses(images(3, 32))
    torch.testing.assert_close(losses["total"], losses["global"] + 0.5 * losses["local"])
    losses["local"].backward(retain_graph=True)
    assert task.model.out[0].weight.grad.abs().sum() > 0
    assert task.encoder.conv_stem.weight.grad.abs().sum() > 0
    assert "local" not in isa(tiny, local_weight=0.0).losses(images(3, 32))


def test_the_clip_itself_reads_the_images_where_there_is_no_light_encoder(tiny: Tiny, tmp_path: Path) -> None:
    task = isa(tiny, changes={"encoder": "", "words": 2, "hidden_dim": 8})
    assert task.model.config.image_dim == 16  # the width of the image encoder's hidden states
    assert task.encoder is None
    assert task.losses(images(3, 32))["total"].requires_grad
    task.export_beside(tmp_path)
    assert not list(tmp_path.iterdir())


# -- words by a classifier -----------------------------------------------------------------------------------------


def class_token(tiny: Tiny, **settings: Any) -> ClassTokenTask:
    given = {"class_name": "cat", "label": 7, "classifier": str(tiny.folder / "classifier"), "size": PIXELS, "steps": 3}
    return ClassTokenTask(str(tiny.folder / "pipeline"), **{**given, **settings})


def test_the_same_noises_come_again_and_lead_to_the_word_alone(tiny: Tiny) -> None:
    task = class_token(tiny)
    assert task.prompts[:2] == ["A photo of $ cat", "a high resolution realistic image of $ cat"]
    table = task.pair.embedding.weight.detach()
    assert torch.equal(task.model().embeddings[0], table[task.ids_of("a")])
    first, second = (task.losses(torch.tensor([1])) for _ in range(2))
    assert first["total"] == second["total"]
    assert first["total"] != task.losses(torch.tensor([2]))["total"]
    first["total"].backward()
    assert task.model.rows.grad.abs().sum() > 0
    assert {name for name, _ in task.named_parameters()} == {"model.rows"}


def test_a_run_ends_when_the_classifier_is_content(tiny: Tiny, tmp_path: Path) -> None:
    """The class that it sees in these images anyway."""
    task = class_token(tiny)
    with torch.no_grad():
        seen = classify(task._classifiers[0], task.images([0])).argmax(1)
    given = tiny.arguments("discriminative_class_tokens_published", tmp_path)
    given += ["--trainer.max_steps=-1", "--trainer.max_epochs=6", "--data.init_args.batch_size=1"]
    given += ["--model.init_args.class_name=cat"]
    label = "--model.init_args.label"
    run("fit", [*given, f"{label}={int(seen)}"])
    run("fit", [*given, f"{label}={(int(seen) + 1) % 300}"])
    steps = [
        torch.load(tmp_path / f"version_{i}/checkpoints/last.ckpt", weights_only=True)["global_step"] for i in (0, 1)
    ]
    assert steps == [5, 30]  # after one epoch, and never
    best = torch.load(tmp_path / "version_1/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] % 5 == 0
    words = load_file(tmp_path / "version_1/model/learned_embeds.safetensors")["<class>"]
    loaded = StableDiffusionPipeline.from_pretrained(tiny.folder / "pipeline")
    loaded.load_textual_inversion(
        str(tmp_path / "version_1/model"), weight_name="learned_embeds.safetensors", local_files_only=True
    )
    token = loaded.tokenizer.convert_tokens_to_ids("<class>")
    assert torch.equal(loaded.text_encoder.get_input_embeddings().weight[token].detach(), words[0])


# -- words by their modulation -------------------------------------------------------------------------------------


def token_offsets(tiny: Tiny, **settings: Any) -> TokenVerseTask:
    torch.manual_seed(0)
    return TokenVerseTask(str(tiny.folder / "flux"), changes={"hidden_dim": 8}, **settings)


def concept(*, joined: bool = True) -> ConceptImages:
    pictures = images(2, 2 * PIXELS)
    others = (pictures.flip(0), ("a red car", "a boat")) if joined else ()
    return ConceptImages(pictures, ("a doll in a boat", "a doll"), *others)


def test_offsets_of_blocks_follow_in_a_second_stage(tiny: Tiny) -> None:
    first, second = token_offsets(tiny), token_offsets(tiny, coarse_steps=0)
    assert (first.stage, second.stage) == (1, 2)
    for task, each in ((first, False), (second, True)):
        losses = task.losses(concept(joined=False))
        assert set(losses) == {"total", "denoising"}
        losses["total"].backward()
        assert task.model.shared.weight.grad.abs().sum() > 0
        assert all((block.weight.grad is not None) == each for block in task.model.of_blocks)
    assert first.model.config.blocks == 4


def test_words_of_an_image_must_leave_another_beside_it_alone(tiny: Tiny) -> None:
    task = token_offsets(tiny, isolation_share=1.0, isolation_weight=2.0)
    start = task.losses(concept())
    torch.testing.assert_close(start["isolation"], torch.zeros(()), atol=1e-9, rtol=0)  # offsets are zero
    torch.nn.init.normal_(task.model.shared.weight, std=5.0)
    losses = task.losses(concept())
    assert losses["isolation"] > 1e-6
    torch.testing.assert_close(losses["total"], losses["denoising"] + 2 * losses["isolation"])
    assert "isolation" not in token_offsets(tiny, isolation_share=0.0).losses(concept())


# -- what does not fit ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(tiny: Tiny) -> None:
    def refused(message: str, make: Any, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            make(tiny, **settings)

    refused("expected vilex, domain_agnostic_e4t, ladi_vton or precise_control, got 'lincir_vit_l14'",
            lambda _, **given: projection(tiny, "lincir_vit_l14", **given))  # fmt: skip
    refused("encoder_rate: expected 0, since precise_control reads no images", precise_control, encoder_rate=0.1)
    refused("recogniser: expected none, since domain_agnostic_e4t is not of faces", e4t, recogniser="faces.pth")
    refused("initial: expected one token, got 'a black cat", e4t, initial="a black cat")
    refused(r"templates: expected one \$ in each", e4t, templates=("a photo",))
    refused("nearest_temperature: expected a positive value", e4t, nearest_temperature=0.0)
    refused("blend: expected 0 to 1, got -0.1", e4t, blend=-0.1)
    refused("init: expected random, pretrained or a file, got 'no.safetensors'", e4t, init="no.safetensors")
    refused("model: expected an ISA, got 'Searle'",
            lambda _: ISATask("searle_vit_b32", clip=tiny.clip, encoder_weights="random"))  # fmt: skip
    refused("ema_decay: expected None", isa, ema_decay=0.9)
    refused("model: expected an FDT, got searle_vit_b32", lambda _: DictionaryTask("searle_vit_b32"))
    refused("model: expected learned words, got 'batex'", class_token, model="batex", changes={"size": 4})
    refused(r"templates: expected one \$ in each", class_token, templates=("a photo",))
    refused("focus: expected 0 to 1, got 2", token_offsets, focus=2)
    with pytest.raises(ValueError, match="label: expected one of 300 classes, got 300"):
        class_token(tiny, label=300).losses(torch.tensor([0]))


# -- data ----------------------------------------------------------------------------------------------------------


def test_rows_come_with_all_that_belongs_to_them(tiny: Tiny) -> None:
    folder = tiny.folder
    codes = str(folder / "codes.safetensors")
    faces = CodedImageData(str(folder / "faces.jsonl"), codes, size=PIXELS, batch_size=3)
    (coded,) = faces.train_dataloader()
    assert coded.images.shape == (3, 3, PIXELS, PIXELS)
    known = load_file(codes)
    order = np.random.default_rng((0, 0)).permutation(4)[:3]
    assert all(torch.equal(code, known[f"images/{number}.png"]) for code, number in zip(coded.codes, order))
    worn = next(iter(GarmentData(str(folder / "garments.jsonl"), (PIXELS, 6), batch_size=2).train_dataloader()))
    assert worn.images.shape == worn.garments.shape == (2, 3, PIXELS, 6)
    assert set(worn.masks.unique().tolist()) == {0.0, 1.0}
    assert worn.to(torch.float64).masks.dtype == torch.float64
    assert worn.categories == ("upper_body", "upper_body")


def test_a_concept_comes_with_its_captions_and_pictures_of_other_things(tiny: Tiny) -> None:
    files = [str(tiny.folder / f"{name}.jsonl") for name in ("concept", "others")]
    data = ConceptData(*files, size=PIXELS)
    both = [next(iter(data.train_dataloader())) for _ in range(2)]
    assert torch.equal(both[0].images, both[1].images)
    assert both[0].texts == both[1].texts
    assert both[0].texts[0] in ("a doll in a boat", "in a boat")
    assert both[0].others is not None
    assert both[0].others.shape == both[0].images.shape == (1, 3, PIXELS, PIXELS)
    assert both[0].other_texts == ("a red car",)
    mirrored = {data.batch([0], epoch).images.sum(dim=(0, 1, 2)).argmax().item() for epoch in range(8)}
    assert len(mirrored) == 2
    plain = ConceptData(files[0], size=PIXELS, flip=False, batch_size=2).batch([0, 1], 0)
    assert torch.equal(plain.images[0], plain.images[1])
    assert (plain.others, plain.other_texts) == (None, ())
    assert plain.to(torch.float64).images.dtype == torch.float64


def test_every_noise_comes_once_in_an_epoch() -> None:
    loader = NoiseData(5, batch_size=2).train_dataloader()
    assert [len(batch) for batch in loader] == [2, 2]
    assert sorted(torch.cat(list(NoiseData(5).train_dataloader())).tolist()) == [0, 1, 2, 3, 4]


def test_rows_that_cannot_be_used_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    row = {"image": "a.png", "garment": "a.png", "mask": "a.png", "category": "dresses"}
    (tmp_path / "rows.jsonl").write_text(f'{json.dumps(row)}\n{{"image": "b.png"}}\n')
    with pytest.raises(ValueError, match=r"line 2: expected a JSON object with image, garment, mask, category"):
        GarmentData(str(tmp_path / "rows.jsonl"))
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    with pytest.raises(MediaError, match=r"a\.png: expected an image"):
        GarmentData(str(tmp_path / "one.jsonl")).batch([0], 0)
    save_file({"images/0.png": torch.zeros(3, 8)}, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"got none for 3, as images/1\.png"):
        CodedImageData(str(tiny.folder / "faces.jsonl"), str(tmp_path / "codes.safetensors"))
