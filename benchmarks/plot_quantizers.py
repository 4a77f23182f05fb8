"""Curves of benchmarks/compare_quantizers.py as a picture.

python benchmarks/plot_quantizers.py docs/images/quantizers.svg benchmarks/results/compare_quantizers*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

PANELS = {"psnr": "PSNR (dB)", "usage": "codes used (%)", "perplexity": "perplexity (codes)"}


def main(arguments: Sequence[str]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    out, *files = arguments
    rows = [row for file in files for row in json.loads(Path(file).read_text())["rows"]]
    plt.rcParams |= {"svg.hashsalt": "zoo", "svg.fonttype": "none", "font.size": 9}
    figure, panels = plt.subplots(1, len(PANELS), figsize=(10, 3.2), layout="constrained")
    for panel, (name, label) in zip(panels, PANELS.items()):
        for row in rows:
            steps, values = zip(*row["curves"][name])
            factor = 100 if name == "usage" else 1
            panel.plot(steps, [value * factor for value in values], label=row["name"], marker=".", markersize=3)
        panel.set(xlabel="step", title=label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.endswith(".svg") else None)


if __name__ == "__main__":
    main(sys.argv[1:])
