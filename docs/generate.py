"""Rewrites the generated parts of the documents: the model table from the manifests, measured tables from their JSON.

python docs/generate.py            # rewrite
python docs/generate.py --check    # exit status 1 if a document is not up to date
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    result = json.loads(path.read_text())
    names = list(result["rows"][0]["quality"])
    lines = [f"| | bytes | bits per pixel | {' | '.join(names)} |", "|---|" + "---|" * (len(names) + 2)]
    for row in result["rows"]:
        quality = " | ".join(f"{row['quality'][name]:.3f}" for name in names)
        lines.append(f"| {row['name']} | {row['file_bytes']:.0f} | {row['bits_per_pixel']:.3f} | {quality} |")
    protocol = "\n".join(f"- {name}: {text}" for name, text in result["protocol"].items())
    return "\n".join([*lines, "", "Means over the images. How it was measured:", "", protocol])


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


PARTS: dict[str, Callable[[], str]] = {
    "models": model_table,
    "inversion": inversion_table,
    "compact": lambda: compare_table(RESULTS / "compare_kodak.json"),
    "goals": goals_table,
    **{f"benchmark {case}": lambda case=case: benchmark_tables(case) for case in CASES},  # type: ignore[misc]
}
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/inversion.md")


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
