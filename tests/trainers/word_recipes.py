"""Tiny networks and files for the recipes of projectors, and the arguments that make such a recipe run on them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_flux import flux
from tiny_open_clip import save_tiny_clip
from tiny_pipeline import clip_tokenizer, stable_diffusion
from tiny_recogniser import save_tiny_recogniser

PIXELS = 8  # of the pipeline's images
FDT_SIZES = (
    "{image_size: 16, patch_size: 8, width: 16, layers: 1, heads: 2, joint_dim: 8, text_dim: 16, codebook_size: 32, "
    "dim: 8, temperature: 1.0}"
)
CHANGES = {  # of configs
    "fdt": FDT_SIZES,
    "isa": "{encoder: mobilenetv3_small_050, image_dim: 288, words: 2, hidden_dim: 8}",
    "vilex": "{words: 5, heads: 2}",
    "domain_agnostic_e4t": "{hidden_dim: 8}",
    "ladi_vton": "{words: 2, heads: 2, mlp_dim: 16, hidden_dim: 16}",
    "tokenverse": "{hidden_dim: 8}",
    "precise_control": "{styles: 3, style_dim: 8, heads: 2, head_dim: 4, depth: 2}",
}


class Tiny:
    """A CLIP, pipelines, a classifier and files of data, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clip = save_tiny_clip(folder / "clip")
        tokenizer = clip_tokenizer()
        for name, inpainting in (("pipeline", False), ("inpainting", True)):
            stable_diffusion(tokenizer, inpainting=inpainting).save_pretrained(folder / name)
        flux().save_pretrained(folder / "flux")
        self._save_classifier(folder / "classifier")
        self.recogniser = str(save_tiny_recogniser(folder / "ir_se.pth"))
        (folder / "images").mkdir()
        generator = np.random.default_rng(0)
        names = [f"images/{number}.png" for number in range(4)]
        for name in (*names, "images/mask.png"):
            Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(folder / name)
        texts = ("a dog", "two cats sleep", "a red car", "the house")
        with tarfile.open(folder / "captions.tar", "w") as shard:
            for number, (name, text) in enumerate(zip(names, texts)):
                (folder / "caption.txt").write_text(text)
                shard.add(folder / name, f"{number}.png")
                shard.add(folder / "caption.txt", f"{number}.txt")
        self._save_rows("faces", [{"image": name} for name in names])
        self._save_rows("concept", [{"image": names[0], "caption": text} for text in ("a doll in a boat", "in a boat")])
        self._save_rows("others", [{"image": name, "caption": "a red car"} for name in names[1:]])
        garment = {"garment": names[0], "mask": "images/mask.png", "category": "upper_body"}
        self._save_rows("garments", [{"image": name, **garment} for name in names])
        torch.manual_seed(0)
        save_file({name: torch.randn(3, 8) for name in names}, folder / "codes.safetensors")

    def _save_rows(self, name: str, rows: Sequence[dict[str, str]]) -> None:
        (self.folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    @staticmethod
    def _save_classifier(folder: Path) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=224,
            patch_size=112, num_labels=300,
        )  # fmt: skip
        ViTForImageClassification(config).save_pretrained(folder)

    def arguments(self, recipe: str, out: Path) -> list[str]:
        """Of `zoo fit`: the recipe as it is, but with tiny networks and pictures, for two steps on the CPU."""
        family = recipe.rpartition("_")[0]
        model, data = self._sections(family)
        if family in CHANGES:
            model["changes"] = CHANGES[family]
        if recipe.endswith("_published") and family == "discriminative_class_tokens":
            model["classifier"] = self.folder / "classifier"
        if recipe == "precise_control_published":
            model["recogniser"] = self.recogniser
        return [
            f"--config={recipe}",
            *(f"--model.init_args.{name}={value}" for name, value in model.items()),
            *(f"--data.init_args.{name}={value}" for name, value in data.items()),
            "--data.init_args.batch_size=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
            "--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={out}",
        ]  # fmt: skip

    def _sections(self, family: str) -> tuple[dict[str, object], dict[str, object]]:
        """Settings of the task, and of the data."""
        folder, pipeline = self.folder, {"pipeline": self.folder / "pipeline"}
        images = {"train": folder / "images", "size": PIXELS, "workers": 0}
        rows = {"size": PIXELS, "workers": 0}
        crop = "{class_path: trainers.data.transforms.ContrastiveAugmentation, init_args: {size: 16}}"
        if family == "fdt":
            text = {"text_layers": 1, "text_heads": 2}
            return text, {**rows, "train": folder / "captions.tar", "size": 16, "transform": crop}
        if family == "isa":
            return {"clip": self.clip, "encoder_weights": "random"}, {**images, "size": 32}
        if family == "discriminative_class_tokens":
            return {**pipeline, "size": PIXELS, "steps": 3}, {}
        if family == "tokenverse":
            others = {"train": folder / "concept.jsonl", "others": folder / "others.jsonl"}
            return {"pipeline": folder / "flux"}, {**rows, **others, "size": 2 * PIXELS}
        if family == "precise_control":
            return {**pipeline}, {**rows, "train": folder / "faces.jsonl", "codes": folder / "codes.safetensors"}
        if family == "ladi_vton":
            own = {"pipeline": folder / "inpainting", "clip": self.clip}
            return own, {**rows, "train": folder / "garments.jsonl", "size": f"[{PIXELS}, {PIXELS}]"}
        return {**pipeline, "clip": self.clip}, images
