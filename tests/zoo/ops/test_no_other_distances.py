"""Models, quantizers and trainers look codes up by `zoo.ops`: no other file compares distances to codes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = ("zoo/ops", "zoo/bench")  # the kernels, and the contenders that they are measured against
NAMES = {"cdist", "pdist", "pairwise_distance", "argmin"}
EXPANDED = re.compile(r"-\s*2(\.0?)?\s*\*[^\n]*(@|matmul|einsum|mm\()|alpha\s*=\s*-\s*2\b")  # |x|^2 - 2 x.c + |c|^2


def distances(source: str) -> list[str]:
    """Lines that look like a comparison of distances. numpy's argmin is let pass: it sees no tensors."""
    lines = source.splitlines()
    found = {number for number, line in enumerate(lines) if EXPANDED.search(line)}
    found |= {node.lineno - 1 for node in ast.walk(ast.parse(source)) if _compares(node)}
    return [lines[number].strip() for number in sorted(found)]


def _compares(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in NAMES and not (isinstance(node.value, ast.Name) and node.value.id in ("numpy", "np"))
    if isinstance(node, ast.Call):
        return any(word.arg == "largest" and ast.unparse(word.value) == "False" for word in node.keywords)
    return isinstance(node, ast.Name) and node.id in NAMES


def test_no_other_file_compares_distances() -> None:
    files = [
        path for name in ("zoo", "tokenizers_visual", "audio", "trainers") for path in ROOT.glob(f"{name}/**/*.py")
    ]
    searched = [path for path in files if not path.relative_to(ROOT).as_posix().startswith(OWN)]
    assert len(searched) > 50
    found = {path.relative_to(ROOT).as_posix(): distances(path.read_text(encoding="utf-8")) for path in searched}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "i = torch.cdist(x, codes).min(1).indices",
        "i = distance.argmin(dim=-1)",
        "i = torch.argmin(distance, 1)",
        "d = x.pow(2).sum(1, keepdim=True) - 2 * x @ codes.T + codes.pow(2).sum(1)",
        "d = a - 2 * torch.einsum('nd,kd->nk', x, codes) + b",
        "d = torch.addmm(b, x, codes.T, alpha=-2)",
        "i = distance.topk(3, largest=False).indices",
        "d = F.pairwise_distance(x, codes)",
    ],
)
def test_such_a_line_is_found(line: str) -> None:
    assert distances(f"x = 1\n{line}\n") == [line]


def test_other_lines_are_not() -> None:
    assert (
        distances("i = numpy.argmin(places)\ny = 2 * x @ w\nz = logits.argmax(-1)\nv = x.topk(3, largest=True)\n") == []
    )
