"""Quantizers on equal terms: one network, 12 bits a token, the same photos in the same order, as many steps.

Every row is a `zoo fit` of the recipe `compact_quantizers_photos` and a `zoo eval` of its model; both commands stand in
the results. docs/quantizers.md shows them.

python benchmarks/compare_quantizers.py --train PHOTOS/train --val PHOTOS/eval --json RESULTS.json
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPE = "compact_quantizers_photos"
CODES = 4096  # 12 bits
METRICS = ("psnr", "ssim", "ms_ssim", "lite2_distance", "feature_fid_lite2", "bits_per_pixel", "codebook")
CURVES = ("psnr", "usage", "perplexity")  # of the validation data while training


@dataclass(frozen=True)
class Row:
    """A quantizer of 12 bits and the weights of its losses, which are those of its paper where it gives them."""

    quantizer: dict[str, Any]
    weights: dict[str, float]
    paper: str


ROWS = {
    "vector": Row(
        {"kind": "vector", "codebook_size": CODES, "dim": 8, "metric": "cosine"},
        {"codebook": 1.0, "commitment": 0.25},
        "as in LlamaGen, arXiv 2406.06525",
    ),
    "FSQ": Row({"kind": "finite_scalar", "levels": [8, 8, 8, 8]}, {}, "arXiv 2309.15505"),
    "LFQ": Row(
        {"kind": "binary", "bits": 12},
        {"commitment": 0.25, "entropy": 0.02},
        "as in MaskBit, arXiv 2409.16211",
    ),
    "BSQ": Row(
        {"kind": "spherical_binary", "bits": 12},
        {"commitment": 0.25, "entropy": 0.1},
        "arXiv 2406.07548",
    ),
    "SimVQ": Row(
        {"kind": "sim_vq", "codebook_size": CODES, "dim": 32},
        {"codebook": 1.0, "commitment": 0.25},
        "arXiv 2411.02038",
    ),
    "IBQ": Row(
        {"kind": "index_backpropagation", "codebook_size": CODES, "dim": 32, "entropy": {"temperature": 0.01}},
        {"index": 1.0, "commitment": 1.0, "codebook": 0.25, "entropy": 0.05},
        "arXiv 2412.02692",
    ),
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantizers", nargs="*", default=[], help=f"some of {', '.join(ROWS)}; default: all")
    parser.add_argument("--train", required=True, help="training images, as `zoo fit` takes them")
    parser.add_argument("--val", required=True, help="images for the curves and the table")
    parser.add_argument("--steps", type=int, default=900, help="of each run")
    parser.add_argument("--curve-points", type=int, default=6, help="validations of each run")
    parser.add_argument("--crop", type=int, default=192, help="pixels a side of the images of the table")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: one that is removed again")
    parser.add_argument("--json", type=Path, required=True, help="file for the results, written after each run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting more for `zoo fit`")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.quantizers) - set(ROWS)):
        parser.error(f"expected some of {', '.join(ROWS)}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for name in options.quantizers or ROWS:
            rows.append(run(name, options, (options.out or Path(temporary)) / name))
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"machine": machine(), "steps": options.steps, "rows": rows}, indent=1))


def run(name: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Train and measure one quantizer."""
    from zoo.cli import app

    row = ROWS[name]
    app(fit_command(row, options, options.train, options.val, out), standalone_mode=False)
    version = max(out.glob("version_*"), key=lambda folder: folder.stat().st_mtime)
    measured = version / "eval.json"
    app([*eval_command(options, options.val, version), f"--json={measured}"], standalone_mode=False)
    result = json.loads(measured.read_text())["metrics"]
    log = list(csv.DictReader((version / "metrics.csv").open()))
    speeds = column(log, "train/images_per_second")
    shown = Path("runs", name)
    commands = [
        fit_command(row, options, "PHOTOS/train", "PHOTOS/eval", shown),
        eval_command(options, "PHOTOS/eval", shown / "version_0"),
    ]
    return {
        "name": name,
        "paper": row.paper,
        "quantizer": row.quantizer,
        "weights": row.weights,
        "commands": [shlex.join(["zoo", *command]) for command in commands],
        "curves": {key: column(log, f"val/{key}") for key in CURVES},
        "metrics": {metric["name"]: metric["value"] for metric in result},
        "protocol": {
            metric["name"]: {key: metric["protocol"][key] for key in ("metric", "weights", "count", "sha256", "crop")}
            for metric in result
        },
        "images_per_second": statistics.median(value for _, value in speeds) if speeds else None,
    }


def fit_command(row: Row, options: argparse.Namespace, train: str, val: str, out: Path) -> list[str]:
    """Arguments of `zoo` that train a row."""
    from trainers.recipes import find_recipe

    network = yaml.safe_load(find_recipe(RECIPE).read_text())["model"]["init_args"]["changes"]
    return [
        "fit", f"--config={RECIPE}", f"--data.train={train}", f"--data.val={val}",
        f"--model.init_args.changes={json.dumps({**network, 'quantizer': row.quantizer})}",
        f"--model.init_args.quantizer_weights={json.dumps(row.weights)}",
        f"--trainer.max_steps={options.steps}",
        f"--trainer.val_check_interval={max(1, options.steps // options.curve_points)}",
        *(f"--{setting}" for setting in options.set), f"--out={out}",
    ]  # fmt: skip


def eval_command(options: argparse.Namespace, val: str, version: Path) -> list[str]:
    """Arguments of `zoo` that measure what it has trained."""
    return [
        "eval", f"local-dir:{version / 'model'}", val, f"--metrics={','.join(METRICS)}", f"--crop={options.crop}",
    ]  # fmt: skip


def column(log: Sequence[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a column of metrics.csv."""
    return [(int(line["step"]), float(line[name])) for line in log if line.get(name)]


def machine() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    from zoo.bench.harness import cpu_name

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    main(sys.argv[1:])
