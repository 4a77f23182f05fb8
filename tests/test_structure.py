"""The structure: imports point one way, nothing heavy is imported at the start, and starting is fast."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "tokenizers_visual", "audio", "trainers")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

# A part may import the parts named after it (and itself). Parts are looked up by the longest matching prefix.
MAY_IMPORT: dict[str, set[str]] = {
    "zoo.config": set(),
    "zoo.adaptive": {"zoo.config", "zoo.metrics"},
    "zoo.prefix": {"zoo.adaptive", "zoo.tokenizer", "zoo.tokens"},
    "zoo.refinement": {"zoo.adaptive", "zoo.losses", "zoo.prefix", "zoo.tokenizer", "zoo.tokens"},
    "zoo.tokens": set(),
    "zoo.download": {"zoo"},
    "zoo.hub": {"zoo.download"},
    "zoo.cards": {"zoo.hub"},
    "zoo.key_map": set(),
    "zoo.checkpoint": {"zoo.key_map"},
    "zoo.ops": {"zoo", "zoo.hub"},
    "zoo.quantizers": {"zoo.config", "zoo.ops", "zoo.layers"},
    "zoo.layers": {"zoo.config", "zoo.ops"},
    "zoo.sizes": {"zoo.key_map", "zoo.quantizers"},
    "zoo.reach": set(),
    "zoo.tiling": {"zoo.reach"},
    "zoo.tiled": {"zoo.tiling", "zoo.tokens"},
    "zoo.bpe": set(),
    "zoo.bpe_parity": {"zoo", "zoo.bpe"},
    "zoo.model": {"zoo.cards", "zoo.config", "zoo.layers", "zoo.tokens"},
    "zoo.options": set(),
    "zoo.tokenizer": {
        "zoo.adaptive", "zoo.config", "zoo.model", "zoo.options", "zoo.quantizers", "zoo.tiled", "zoo.tokens",
    },
    "zoo.streaming": {"zoo.layers", "zoo.options", "zoo.tokenizer", "zoo.tokens"},
    "zoo.structured": {"zoo.config", "zoo.model", "zoo.quantizers", "zoo.tokens"},
    "zoo.long_audio": {"zoo.options", "zoo.reach", "zoo.streaming", "zoo.tokenizer", "zoo.tokens"},
    "zoo.registry": {
        "zoo", "zoo.cards", "zoo.checkpoint", "zoo.config", "zoo.hub", "zoo.model", "zoo.quantizers",
    },
    "zoo.interop": {
        "zoo", "zoo.cards", "zoo.checkpoint", "zoo.config", "zoo.key_map", "zoo.layers", "zoo.quantizers",
        "zoo.registry", "zoo.tokenizer", "zoo.tokens",
    },
    "zoo.serve": {"zoo", "zoo.cards", "zoo.hub", "zoo.media", "zoo.metrics", "zoo.tokenizer", "zoo.tokens"},
    "zoo.bulk": {"zoo", "zoo.media", "zoo.registry", "zoo.tokenizer", "zoo.tokens"},
    "zoo.metrics": {"zoo", "zoo.hub", "zoo.losses", "zoo.tokens"},
    "zoo.losses": {"zoo", "zoo.cards", "zoo.checkpoint", "zoo.config", "zoo.hub", "zoo.layers", "zoo.ops"},
    "zoo.media": {"zoo", "zoo.metrics", "zoo.tokenizer"},
    "zoo.parity": {
        "zoo", "zoo.bpe_parity", "zoo.cards", "zoo.checkpoint", "zoo.losses", "zoo.metrics", "zoo.quantizers",
        "zoo.registry",
    },
    "zoo": {"zoo.adaptive", "zoo.bpe",
            "zoo.cards", "zoo.checkpoint", "zoo.config", "zoo.hub", "zoo.interop", "zoo.losses",
            "zoo.media", "zoo.metrics", "zoo.ops", "zoo.parity", "zoo.quantizers", "zoo.refinement",
            "zoo.registry", "zoo.tokenizer", "zoo.tokens"},  # for type checkers alone
    "zoo.bench": {
        "zoo", "zoo.bulk", "zoo.checkpoint", "zoo.interop", "zoo.layers", "zoo.media", "zoo.ops", "zoo.quantizers",
        "zoo.registry", "zoo.tokenizer", "zoo.tokens",
    },
    "tokenizers_visual": {
        "zoo", "zoo.adaptive", "zoo.checkpoint", "zoo.config", "zoo.hub", "zoo.interop", "zoo.layers", "zoo.losses",
        "zoo.media", "zoo.model", "zoo.ops", "zoo.parity", "zoo.prefix",
        "zoo.quantizers", "zoo.registry", "zoo.sizes", "zoo.structured", "zoo.tokenizer",
        "zoo.tokens",
    },
    "audio": {
        "zoo", "zoo.cards", "zoo.checkpoint", "zoo.config", "zoo.hub", "zoo.interop", "zoo.layers", "zoo.losses",
        "zoo.metrics", "zoo.ops", "zoo.options", "zoo.parity", "zoo.quantizers", "zoo.reach", "zoo.registry",
        "zoo.streaming", "zoo.tokenizer", "zoo.tokens",
    },
    "trainers": {
        "audio", "tokenizers_visual", "zoo", "zoo.checkpoint", "zoo.config", "zoo.layers", "zoo.losses", "zoo.media",
        "zoo.metrics", "zoo.model", "zoo.ops",
        "zoo.quantizers", "zoo.registry", "zoo.tokenizer",
    },
    "zoo.cli": {"*"},
    "zoo.__main__": {"zoo.cli"},
}  # fmt: skip
# these are imported where they are used, never when a module of ours is
HEAVY = {"lightning", "diffusers", "transformers", "open_clip", "timm", "matplotlib", "torchvision", "sklearn",
         "skimage", "jsonargparse", "webdataset", "datasets", "vector_quantize_pytorch", "triton", "faiss", "ray",
         "onnxruntime", "onnxscript", "fastapi", "uvicorn", "starlette"}  # fmt: skip


def part(module: str) -> str:
    """The part of MAY_IMPORT that a module belongs to; packing is the other half of tokens."""
    module = "zoo.tokens" if module == "zoo.packing" else module
    while module not in MAY_IMPORT:
        module = module.rpartition(".")[0]
    return module


def imports(module: str, top_level: bool = False) -> set[str]:
    """Modules that a module names in its import statements; `top_level`: those run when it is imported."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = list(ast.walk(tree))
    if top_level:
        nodes, stack = [], list(tree.body)
        while stack:
            node = stack.pop()
            nodes.append(node)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                stack += list(ast.iter_child_nodes(node))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= inner & MODULES.keys() or {node.module}
            found |= {node.module} if not inner <= MODULES.keys() else set()
    return found


ARROWS = sorted(
    {
        (module, target)
        for module in MODULES
        for target in imports(module)
        if target.partition(".")[0] in PACKAGES and part(target) != part(module)
    }
)


def test_the_graph_is_not_empty() -> None:
    assert len(ARROWS) > 50
    assert ("tokenizers_visual.compact", "zoo.registry") in ARROWS


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module: str) -> None:
    allowed = MAY_IMPORT[part(module)]
    if "*" in allowed:
        return
    wrong = [target for source, target in ARROWS if source == module and part(target) not in allowed]
    assert not wrong, f"{module} imports {', '.join(wrong)}; {part(module)} may import {sorted(allowed)}"


def test_the_allowed_arrows_have_no_circle() -> None:
    """Apart from the lazy names of `zoo` itself."""
    edges = {name: targets - {"zoo", "*"} for name, targets in MAY_IMPORT.items() if name not in ("zoo", "zoo.cli")}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = list(edges[start])
        while stack:
            if (name := stack.pop()) not in seen:
                seen.add(name)
                stack += edges.get(name, set())
        return seen

    assert not [name for name in edges if name in reached(name)]


def test_the_core_knows_no_family_by_name() -> None:
    families = {path.stem for package in ("tokenizers_visual", "audio") for path in (ROOT / package).glob("[a-z]*.py")}
    assert "llamagen_vq" in families
    for module, path in MODULES.items():
        if module.startswith("zoo") and not module.startswith(("zoo.cli", "zoo.bench", "zoo.quantizers")):
            tree = ast.parse(path.read_text())
            texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            named = families & {text for text in texts if isinstance(text, str)}
            assert not named, f"{module} names {named}"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not name.startswith("trainers")))
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    own = {"triton"} if module.endswith("_triton") else set()  # kernels, which are imported where they are used
    heavy = {name.partition(".")[0] for name in imports(module, top_level=True)} & HEAVY - own
    assert not heavy, f"{module} imports {heavy} at its start"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_zoo_imports_nothing_heavy() -> None:
    loaded = run(
        "import sys, zoo; zoo.create_model; zoo.media; print(*{m.partition('.')[0] for m in sys.modules})"
    ).split()
    assert not HEAVY & set(loaded)


def test_cards_need_no_torch() -> None:
    assert run("import sys, zoo.cards; zoo.cards.all_cards(); print('torch' in sys.modules)").strip() == "False"


def test_import_zoo_costs_under_half_a_second_beyond_torch() -> None:
    program = (
        "import time, torch; s = time.process_time(); import zoo; zoo.create_model; print(time.process_time() - s)"
    )
    assert min(float(run(program)) for _ in range(3)) < 0.5


def test_zoo_list_takes_under_one_and_a_half_seconds() -> None:
    """Of processor time, so that a busy machine does not matter."""

    def seconds() -> float:
        start = sum(os.times()[2:4])  # of children
        run("import sys; from zoo.cli import main; sys.argv = ['zoo', 'list']; sys.exit(main())")
        return sum(os.times()[2:4]) - start

    assert min(seconds() for _ in range(4)) < 1.5


def test_buffers_that_no_weights_bring_are_constants() -> None:
    """So that they are there after a start on the meta device; but what others fill is theirs to keep."""
    filled = {"zoo.metrics.evaluation", "tokenizers_visual.inversion.conse", "trainers.tasks.projection",
              "trainers.tasks.personalisation"}  # fmt: skip
    found = {name for name, path in MODULES.items() if "persistent=False" in path.read_text()}
    assert found == filled | {"zoo.layers.constants"}


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their base names."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_a_file_of_a_family_is_read_in_one_sitting() -> None:
    files = [path for folder in ("audio", "tokenizers_visual") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > 400} == {}
