"""Rewrites the generated parts of README.md: the model table from the manifests, measured tables from their JSON.

python docs/generate.py            # rewrite
python docs/generate.py --check    # exit status 1 if README.md is not up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from zoo import cards

ROOT = Path(__file__).resolve().parent.parent


def model_table() -> str:
    """One row per model of the manifests."""
    lines = ["| model | family | quantizer | weights | published |", "|---|---|---|---|---|"]
    for card in cards.all_cards():
        flags = " *nc*" if card.non_commercial else ""
        weights = f"{card.licence}{flags}" if card.source is not None else "none"
        headline = ", ".join(f"{metric.name} {metric.value:g}" for metric in card.metrics[:1])
        lines.append(f"| `{card.full_name}` | {card.family} | {card.quantizer} | {weights} | {headline} |")
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


def generated(text: str) -> str:
    """README's text with the generated parts made anew."""
    parts = {"models": model_table(), "compact": compare_table(ROOT / "benchmarks" / "results" / "compare_kodak.json")}
    for name, content in parts.items():
        pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
        text = re.sub(pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text()
    made = generated(text)
    if "--check" in sys.argv:
        return int(made != text)
    path.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
