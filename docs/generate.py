"""Rewrites the generated parts of the documents: the model table from the manifests, measured tables from their JSON.

python docs/generate.py            # rewrite
python docs/generate.py --check    # exit status 1 if a document is not up to date
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo import cards
from zoo.bench import CASES, report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def model_table() -> str:
    """One row per model name: its tags, and the first number that is known of one of them."""
    lines = ["| model | tags | family | quantizer | weights | published |", "|---|---|---|---|---|---|"]
    for name, group in itertools.groupby(cards.all_cards(), key=lambda card: card.name):
        models = list(group)
        tags = ", ".join(f"`{card.tag}`" for card in models)
        first = models[0]
        weights = f"{first.licence}{' *nc*' if first.non_commercial else ''}" if first.source is not None else "none"
        headline = next((f"{card.metrics[0].name} {card.metrics[0].value:g}" for card in models if card.metrics), "")
        lines.append(f"| `{name}` | {tags} | {first.family} | {first.quantizer} | {weights} | {headline} |")
    return "\n".join(lines)


_SIGNALS = {"image": "images", "video": "video", "audio": "audio"}


def family_table() -> str:
    """One row per family: what it codes, how many models of it are known, and whose idea it is."""
    lines = ["| family | codes | quantizer | models | paper |", "|---|---|---|---:|---|"]
    cards_of: dict[str, list[cards.ModelCard]] = {}
    for card in cards.all_cards():
        cards_of.setdefault(card.family, []).append(card)
    kinds = {card.family: "words" if card.layout == "words" else card.modality for card in cards.all_cards()}
    order = ["image", "video", "audio", "words"]
    rank = {family: order.index(kind) if kind in order else len(order) for family, kind in kinds.items()}
    for family, models in sorted(cards_of.items(), key=lambda pair: (rank[pair[0]], pair[0])):
        kind = kinds[family]
        codes = "images as words" if kind == "words" else _SIGNALS.get(kind, kind)
        if kind == "image" and models[0].layout == "sequence":
            codes = "images, in one dimension"
        quantizers = ", ".join(sorted({card.quantizer for card in models} - {"none"})) or "-"
        papers = ", ".join(dict.fromkeys(card.paper for card in models if card.paper))
        lines.append(f"| `{family}` | {codes} | {quantizers} | {len(models)} | {papers} |")
    return "\n".join(lines)


def inversion_table() -> str:
    """One row per name of the models that make words: what they write into, and where they come from."""
    lines = ["| model | tags | words for | weights | paper |", "|---|---|---|---|---|"]
    chosen = [card for card in cards.all_cards() if card.layout == "words"]
    for name, group in itertools.groupby(chosen, key=lambda card: card.name):
        models = list(group)
        first, tags = models[0], ", ".join(f"`{card.tag}`" for card in models)
        target = first.config.get("language_model") or first.config.get("backbone") or "its own dictionary"
        weights = f"{first.licence}{' *nc*' if first.non_commercial else ''}" if first.source is not None else "none"
        lines.append(f"| `{name}` | {tags} | {target.removeprefix('open_clip:')} | {weights} | {first.paper} |")
    return "\n".join(lines)


def compare_table(path: Path) -> str:
    """The table of `zoo compare --json`, with its protocol."""
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    names = list(result["rows"][0]["quality"])
    lines = [f"| | bytes | bits per pixel | {' | '.join(names)} |", "|---|" + "---|" * (len(names) + 2)]
    for row in result["rows"]:
        quality = " | ".join(f"{row['quality'][name]:.3f}" for name in names)
        lines.append(f"| {row['name']} | {row['file_bytes']:.0f} | {row['bits_per_pixel']:.3f} | {quality} |")
    protocol = "\n".join(f"- {name}: {text}" for name, text in result["protocol"].items())
    return "\n".join([*lines, "", "Means over the images. How it was measured:", "", protocol])


def joined_tables(*paths: Path) -> str:
    """The rows of several `zoo compare --json`, each with its data, without the protocols."""
    if not all(path.is_file() for path in paths):
        return "Not measured yet."
    results = [json.loads(path.read_text()) for path in paths]
    names = list(results[0]["rows"][0]["quality"])
    lines = [f"| photos | | bytes | {' | '.join(names)} |", "|---|---|" + "---:|" * (len(names) + 1)]
    for result in results:
        data = ", ".join(result["protocol"]["data"].split(", ")[:2])
        for row in result["rows"]:
            quality = " | ".join(f"{row['quality'][name]:.3f}" for name in names)
            lines.append(f"| {data} | {row['name']} | {row['file_bytes']:.0f} | {quality} |")
    return "\n".join(lines)


def sweep_table(path: Path) -> str:
    """The table of `zoo sweep --json`, of the codecs those settings that reach down to the model's rates."""
    if not path.is_file():
        return "Not measured yet."
    rows = json.loads(path.read_text())["rows"]
    names = list(rows[0]["quality"])
    lines = [f"| | bytes | bits per pixel | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 2)]
    for row in rows:
        setting = row["setting"]
        if setting is None or setting <= 10:
            name = row["name"] if setting is None else f"{row['name']}, quality {setting:.0f}"
            quality = " | ".join(f"{row['quality'][name]:.3f}" for name in names)
            lines.append(f"| {name} | {row['file_bytes']:.0f} | {row['bits_per_pixel']:.3f} | {quality} |")
    return "\n".join(lines)


def benchmark_records(case: str) -> list[dict[str, Any]]:
    """Of `CASE.jsonl`, which `make bench` writes, and of further files `CASE_<machine>.jsonl`."""
    paths = [path for path in sorted(RESULTS.glob("*.jsonl")) if path.stem.partition("_")[0] == case]
    return [record for path in paths for record in report.read(path)]


def benchmark_tables(case: str) -> str:
    """Every setting of a case."""
    return report.markdown(benchmark_records(case)) or "Not measured yet."


def goals_table() -> str:
    """What was to be reached, and what was."""
    return report.goal_table(record for case in CASES for record in benchmark_records(case))


def speed_table() -> str:
    """How fast the zoo is beside its peers: of each problem the first machine, docs/benchmarks.md has all."""
    first: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in (record for case in CASES for record in benchmark_records(case)):
        first.setdefault((record["case"], record["problem"], record["device"]), record)
    return report.peer_table(first.values())


def recipe_table(*tasks: str) -> str:
    """Every recipe of some tasks: what its head says, and the model."""
    lines = ["| recipe | model | what it is |", "|---|---|---|"]
    for path in sorted((ROOT / "trainers" / "configs").glob("*.yaml")):
        text = path.read_text()
        settings = yaml.safe_load(text)["model"]
        if settings["class_path"].rpartition(".")[2] in tasks:
            head = re.match(r"((?:# (?! ).*\n)+)", text)
            about = " ".join(line.removeprefix("# ") for line in head[1].splitlines()) if head else ""
            lines.append(f"| `{path.stem}` | `{settings['init_args']['model']}` | {about} |")
    return "\n".join(lines)


def quantizer_table() -> str:
    """The rows of benchmarks/compare_quantizers.py, their protocol, and the commands."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("compare_quantizers*.json"))]
    if not results:
        return "Not measured yet."
    rows = [row for result in results for row in result["rows"]]
    columns = {"psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lite2_distance": "Lite2 distance"}
    columns |= {"feature_fid_lite2": "feature FID", "usage": "usage", "perplexity": "perplexity"}
    lines = [f"| quantizer | {' | '.join(columns.values())} | images/s |", "|---|" + "---:|" * (len(columns) + 1)]
    for row in sorted(rows, key=lambda row: row["metrics"]["lite2_distance"]):
        values = " | ".join(report.figures(row["metrics"][name]) for name in columns)
        lines.append(f"| {row['name']} ({row['paper']}) | {values} | {row['images_per_second']:,.0f} |")
    machine, protocol = results[0]["machine"], rows[0]["protocol"]
    notes = [
        f"{results[0]['steps']} steps on {machine['device']}, threads: {machine['threads']}, torch {machine['torch']}.",
        "images/s: of training, median of a run; other work shared the machine, so they compare rows only roughly.",
        f"{protocol['psnr']['count']} images, sha256 {protocol['psnr']['sha256']}; {protocol['psnr']['crop']}.",
        *(f"{title}: {protocol[name]['metric']}{_weights(protocol[name])}." for name, title in columns.items()),
    ]
    commands = "\n".join(command for row in rows for command in [f"# {row['name']}", *row["commands"]])
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), "", "Each row:", "", f"```sh\n{commands}\n```"])


def original_table() -> str:
    """A training here beside that of an original's own code, of compare_original.json."""

    def cells(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
        return [f"{row[name][side]:.4g}" for name in columns for side in ("zoo", "original")]

    where = {"precision": "precision", "weight": "weight of the adversary", "runs": "runs", "steps": "after step"}
    return _recorded("compare_original", where, cells, sides=(", zoo", ", original"))


def adversary_table() -> str:
    """The embedded default before and after trainings against a discriminator, of compare_adversary.json."""

    def cells(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
        return [f"{row['metrics'][name]:.4g}" for name in columns]

    return _recorded("compare_adversary", {"data": "photos", "model": "weights"}, cells)


def original_steps_table() -> str:
    """How far a training here and an original's own code come apart step by step, of original_steps.json."""

    def cells(row: dict[str, Any], columns: dict[str, str]) -> list[str]:
        shown = {name: "-" if row[name] is None else f"{row[name]:.0e}" for name in columns}
        return list({**shown, "codes": f"{row['codes']:.1%}"}.values())

    return _recorded("original_steps", {"precision": "precision", "step": "after step"}, cells)


def _recorded(
    name: str,
    where: dict[str, str],
    cells: Callable[[dict[str, Any], dict[str, str]], list[str]],
    sides: Sequence[str] = ("",),
) -> str:
    """The rows of a record, and what it says about them.

    Args:
        name: of the file; its `columns` are titles by the names of what was measured.
        where: titles of the first columns by their keys in a row.
        cells: of the others.
        sides: what follows the titles of these, of which each has as many columns.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    columns = result["columns"]
    titles = [f"{title}{side}" for title in columns.values() for side in sides]
    marks = ["---" if isinstance(result["rows"][0][key], str) else "---:" for key in where] + ["---:"] * len(titles)
    lines = [f"| {' | '.join([*where.values(), *titles])} |", f"|{'|'.join(marks)}|"]
    for row in result["rows"]:
        first = [row[key] if isinstance(row[key], str) else f"{row[key]:g}" for key in where]
        lines.append(f"| {' | '.join([*first, *cells(row, columns)])} |")
    return "\n".join([*lines, "", result["about"]])


def _weights(protocol: dict[str, Any]) -> str:
    return f" ({protocol['weights']})" if protocol["weights"] else ""


IMAGE_TASKS = (
    "ReconstructionTask", "SemanticTask", "ContrastiveTask", "LatentTask", "FeatureMapTask", "QueryTask",
    "QueryCodeTask",
)  # fmt: skip
WORD_TASKS = (
    "LinCIRTask", "Pic2WordTask", "DistillationTask", "ISATask", "RTDTask", "PersonalisationTask", "ClassTokenTask",
    "ProjectionTask", "DictionaryTask", "TokenVerseTask",
)  # fmt: skip
PARTS: dict[str, Callable[[], str]] = {
    "families": family_table,
    "models": model_table,
    "inversion": inversion_table,
    "compact": lambda: compare_table(RESULTS / "compare_kodak.json"),
    "goals": goals_table,
    "speed": speed_table,
    "recipes": lambda: recipe_table(*IMAGE_TASKS),
    "adaptive recipes": lambda: recipe_table(
        "AdaptiveTask", "AlignmentTask", "ProxyTask", "RollOutTask", "HaltingTask"
    ),
    "word recipes": lambda: recipe_table(*WORD_TASKS),
    "spectral": lambda: compare_table(RESULTS / "compare_spectral_kodak.json"),
    "refined": lambda: compare_table(RESULTS / "compare_spectral_refined_kodak.json"),
    "refined eval": lambda: compare_table(RESULTS / "compare_spectral_refined_eval.json"),
    "refined tables": lambda: joined_tables(
        *(RESULTS / f"compare_spectral_refined_{name}.json" for name in ("kodak", "eval"))
    ),
    "sweep": lambda: sweep_table(RESULTS / "sweep_kodak.json"),
    "quantizers": quantizer_table,
    "original training": original_table,
    "adversary": adversary_table,
    "original steps": original_steps_table,
    **{f"benchmark {case}": lambda case=case: benchmark_tables(case) for case in CASES},  # type: ignore[misc]
}
DOCUMENTS = (
    "README.md",
    "docs/adaptive.md",
    "docs/benchmarks.md",
    "docs/inversion.md",
    "docs/models.md",
    "docs/quantizers.md",
    "docs/training.md",
)


def generated(text: str) -> str:
    """A document's text with the generated parts made anew."""
    for name in re.findall(r"<!-- end of (.*?) -->", text):
        pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
        content = PARTS[name]()
        text = re.sub(pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    stale = False
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        made = generated(text)
        stale |= made != text
        if "--check" not in sys.argv:
            path.write_text(made)
    return int(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
