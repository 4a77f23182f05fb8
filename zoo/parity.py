"""Parity: runs a fixture (weights, inputs and outputs of an original implementation) against a family of the zoo.

A fixture is a folder of `weights.safetensors`, `arrays.safetensors` and `meta.json`; docs/parity.md tells the format.
"""

from __future__ import annotations

import dataclasses
import json
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo import bpe_parity, cards, checkpoint
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.metrics import audio_parity
from zoo.quantizers.base import Quantized
from zoo.registry import Family, import_module, registry

Named = dict[str, Tensor]


class FixtureError(ValueError):
    """A folder that is no fixture, or one whose family the zoo does not have."""


@dataclass(frozen=True)
class CheckResult:
    """One check: the worst float error over its outputs, whether integers are equal, and what went wrong.

    `absolute` is the largest absolute error, `relative` the largest absolute error of an array over the largest
    magnitude expected in it; `worst` names the array of the latter.
    """

    check: str
    passed: bool
    optional: bool = False
    absolute: float | None = None
    relative: float | None = None
    worst: str = ""
    indices_equal: bool | None = None
    outputs: int = 0
    message: str = ""


@dataclass(frozen=True)
class FixtureResult:
    """All checks of one fixture. It passes when every check that is not optional passes, and there is one."""

    fixture: str
    family: str
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        return len(self.checks) > 0 and all(check.passed or check.optional for check in self.checks)


@dataclass(frozen=True)
class Fixture:
    """The content of a fixture's folder."""

    name: str
    meta: dict[str, Any]
    weights: Named
    arrays: Named
    folder: Path  # beside it lie fixtures of other networks that it names

    @staticmethod
    def read(folder: Path) -> Fixture:
        """Read a folder; a malformed file is a FixtureError, and a missing one unless it is that of the weights."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            weights, arrays = _weights(folder / "weights.safetensors"), checkpoint.read(folder / "arrays.safetensors")
        except (OSError, json.JSONDecodeError, checkpoint.CheckpointError) as error:
            raise FixtureError(
                f"{folder}: expected weights.safetensors, arrays.safetensors, meta.json: {error}"
            ) from error
        if missing := [key for key in ("family", "original", "checks") if key not in meta]:
            raise FixtureError(f"{folder}/meta.json: missing {', '.join(missing)}")
        prefix = meta.get("weights_prefix") or ""
        if prefix and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
        return Fixture(folder.resolve().name, meta, weights, arrays, folder.resolve())


def _weights(path: Path) -> Named:
    """The tensors of a file; none where a model has no weights: no file, an empty one, or a tensor `_none` alone."""
    if not path.exists() or path.stat().st_size == 0:
        return {}
    try:
        return {key: value for key, value in load_file(path).items() if key != "_none"}
    except SafetensorError as error:
        raise checkpoint.CheckpointError(f"{path}: {error}") from error


class Case:
    """A model built from a fixture, and one method per kind of check, returning outputs under the fixture's names.

    A family whose checks are of other kinds subclasses this in the module that its manifest names as `parity`; one
    whose fixtures hold a part of the model names the `absent` weights.
    """

    absent: tuple[str, ...] = ()

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.fixture, self.meta, self.definitions = fixture, fixture.meta, family.module
        self.model = family.model(self.definitions.config_from_original(self.meta)).eval()  # type: ignore[call-arg]
        choose = getattr(self.definitions, "key_map_from_original", None)
        self.key_map: checkpoint.KeyMap = choose(self.meta) if choose else self.definitions.KEY_MAP
        checkpoint.load_into(self.model, self.key_map(fixture.weights), absent=self.absent)

    def load_raw_weights(self) -> None:
        """Load the weights as trained, of a fixture that also holds their running averages."""
        self.key_map = dataclasses.replace(
            self.key_map, ema=None, patterns={**self.key_map.patterns, f"{self.key_map.ema}*": None}
        )
        checkpoint.load_into(self.model, self.key_map(self.fixture.weights))

    def change_quantizer(self, **fields: Any) -> None:
        """Build the model anew, with other values of fields of its quantizer's config."""
        config: Any = self.model.config
        changed = config.replace(quantizer=config.quantizer.replace(**fields))
        self.model = type(self.model)(changed).eval()  # type: ignore[arg-type]
        checkpoint.load_into(self.model, self.key_map(self.fixture.weights))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        (signal,) = inputs.values()
        tokens = self.model.encode(signal)
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(signal))
            quantized = self.model.quantizer(latent)
        return {
            "indices": tokens.indices,
            "latent": channels_first(latent),
            "quantized": channels_first(quantized.codes),
            **self.original_losses(quantized),
        }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        indices = inputs["indices"]
        if "grid" in settings:
            indices = indices.reshape(settings["grid"])
        elif indices.ndim == 2 and self.model.layout == "grid":  # flat, of a square
            side = round(indices.shape[1] ** 0.5)
            indices = indices.reshape(len(indices), side, side)
        tokens = dataclasses.replace(self.model.tokens(indices), extent=None)
        return {self.model.spec.modality: self.model.decode(tokens)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        (signal,) = inputs.values()
        with torch.no_grad():
            return {self.model.spec.modality: self.model(signal).reconstruction}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        (signal,) = inputs.values()
        self.model.train()
        latent = self.model.latent(self.model.pad(signal))
        latent.retain_grad()
        quantized = self.model.quantizer(latent)
        reconstruction = self.model.reconstruct(quantized.codes)
        total = settings.get("total", "rec")
        pixel_loss = settings.get("reconstruction_loss") or ("l1" if total.startswith("l1") else "l2")
        rec = RECONSTRUCTION_LOSSES[pixel_loss](reconstruction, signal).mean()
        rec = settings.get("reconstruction_weight", 1.0) * rec
        losses = {"loss.rec": rec, f"loss.{pixel_loss}": rec, **self.original_losses(quantized)}
        losses["loss.total"] = weighted_sum(losses, total)
        losses["loss.total"].backward()
        return {**losses, "grad.latent": channels_first(gradient(latent)), **self.gradients()}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.model.train(bool(settings.get("training", False)))
        latent = inputs["latent"].movedim(1, -1).requires_grad_()
        quantized = self.model.quantizer(latent)
        losses = self.original_losses(quantized)
        alike = len({level.shape for level in quantized.levels}) == 1
        levels = quantized.levels
        indices = torch.stack(levels, dim=1) if alike else torch.cat([level.flatten(1) for level in levels], dim=1)
        outputs = {"indices": indices, "quantized": channels_first(quantized.codes), **losses}
        of_loss = losses.get("loss.quantizer", latent.new_zeros(()))
        if of_loss.requires_grad:
            (slope,) = torch.autograd.grad(of_loss, latent, retain_graph=True)
            outputs["grad.latent_loss_only"] = channels_first(slope)
        if "upstream" in inputs:
            total = (quantized.codes * inputs["upstream"].movedim(1, -1)).sum()
            further = settings.get("grad_of", "").removeprefix("sum(quantized*upstream)")
            (total + weighted_sum(losses, further)).backward()
            outputs["grad.latent"] = channels_first(gradient(latent))
            outputs.update(self.gradients())
        return outputs

    def original_losses(self, quantized: Quantized) -> Named:
        """The quantizer's losses under the names and with the weights of the original."""
        return self.definitions.original_losses(quantized, self.meta)

    def gradients(self) -> Named:
        """`grad.<key of the original>` of every parameter that has a gradient."""
        return gradients(self.model, self.key_map, self.fixture.weights)


def gradients(model: nn.Module, key_map: checkpoint.KeyMap, weights: Named) -> Named:
    """`grad.<key of the original>` of every parameter of a model that has a gradient.

    Of a weight that the key map folded from magnitude and direction, the gradients are those of the two.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for key in weights:
        own, name = key_map.name(key, weights), key.removeprefix(key_map.prefix)
        if own in parameters and parameters[own].grad is not None:
            found[f"grad.{name}"] = gradient(parameters[own]).reshape(weights[key].shape)
        for magnitude, direction in checkpoint.WEIGHT_NORMS if key_map.weight_norm else ():
            module = key.removesuffix(magnitude)
            own = key_map.name(f"{module}weight", weights) if module != key else None
            if own in parameters and parameters[own].grad is not None:
                parts = [weights[module + part].clone().requires_grad_() for part in (magnitude, direction)]
                folded = checkpoint.weight_norm(*parts)
                slopes = torch.autograd.grad(folded, parts, gradient(parameters[own]).reshape(folded.shape))
                module = name.removesuffix(magnitude)
                found |= {f"grad.{module}{part}": slope for part, slope in zip((magnitude, direction), slopes)}
    return found


def channels_first(x: Tensor) -> Tensor:
    """(B, *positions, D) -> (B, D, *positions), as most fixtures state latents."""
    return x.detach().movedim(-1, 1)


def weighted_sum(losses: Named, formula: str) -> Tensor:
    """A fixture's sum of losses, such as "rec + 0.1*entropy (a remark)"."""
    total = torch.zeros(())
    for term in filter(None, (term.strip() for term in re.split(r"[(;]", formula)[0].split("+"))):
        weight, _, name = term.rpartition("*")
        total = total + float(weight or 1) * losses[f"loss.{name.strip().removeprefix('loss.')}"]
    return total


def gradient(tensor: Tensor) -> Tensor:
    """The gradient that backward left in a tensor.

    Raises:
        ValueError: there is none.
    """
    if tensor.grad is None:
        raise ValueError("expected a gradient, got none")
    return tensor.grad


# of what no manifest names, by the `family` they state
CORE_FIXTURES = {
    "token_bpe_image": bpe_parity.Case,
    "audio_metrics": audio_parity.AudioCase,
    "stab": audio_parity.StabCase,
}

# -- running -------------------------------------------------------------------------------------------------------


def fixtures(paths: Iterable[Path]) -> list[Path]:
    """The fixture folders among paths: those with a meta.json, or their children that have one.

    Raises:
        FixtureError: a path that is no fixture and holds none.
    """
    found = []
    for path in paths:
        inside = [path] if (path / "meta.json").is_file() else sorted(meta.parent for meta in path.glob("*/meta.json"))
        if not inside:
            raise FixtureError(f"{path}: expected a folder with meta.json in it, or one that holds such folders")
        found += inside
    return found


def run_fixtures(paths: Iterable[Path]) -> list[FixtureResult]:
    """Run every fixture of the paths; what goes wrong in one is told in its result."""
    return [run_fixture(folder) for folder in fixtures(paths)]


def run_fixture(folder: Path) -> FixtureResult:
    """Run all checks of one fixture, on one thread: sums in another order give other last digits."""
    try:
        fixture = Fixture.read(folder)
    except FixtureError as error:
        return FixtureResult(folder.name, "?", (CheckResult("read", False, message=str(error)),))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = [_run_check(fixture, check) for check in fixture.meta["checks"]]
    finally:
        torch.set_num_threads(threads)
    return FixtureResult(fixture.name, fixture.meta["family"], tuple(results))


def _case(fixture: Fixture) -> Any:
    name = fixture.meta["family"]
    if name in CORE_FIXTURES:
        return CORE_FIXTURES[name]()
    manifest = next((m for m in cards.manifests() if name in m.fixtures), None)
    if manifest is None:
        return Case(fixture, registry.family(name))
    family = registry.family(manifest.family, manifest.module)
    if manifest.parity:
        return import_module(manifest.parity).case(fixture, family)
    return Case(fixture, family)


def _run_check(fixture: Fixture, check: Mapping[str, Any]) -> CheckResult:
    """One check, on a model built afresh, so that none leaves a trace in the next."""
    kind, optional = check["check"], bool(check.get("optional", False))
    try:
        case = _case(fixture)
        run = getattr(case, kind, None)
        if run is None:
            raise FixtureError(f"{type(case).__name__} knows no check {kind!r}")
        inputs = _inputs(check["inputs"], fixture)
        settings = dict(check.get("settings") or {})
        if settings.get("weights") == "raw":
            case.load_raw_weights()
        outputs = run(inputs, settings)
        result = _compare(kind, outputs, check, fixture)
    except Exception as error:  # a fixture of a stranger may break anywhere; its failure is the result
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        result = CheckResult(kind, False, message=message)
    return dataclasses.replace(result, optional=optional)


def _inputs(stated: Mapping[str, str | list[str]], fixture: Fixture) -> Named:
    """The arrays of a check; those of a list get their number behind its name: `positions_0`, `positions_1`."""
    names: dict[str, str] = {}
    for name, array in stated.items():
        names |= {name: array} if isinstance(array, str) else {f"{name}_{i}": part for i, part in enumerate(array)}
    return {name: fixture.arrays[array].clone() for name, array in names.items()}


def _compare(kind: str, outputs: Named, check: Mapping[str, Any], fixture: Fixture) -> CheckResult:
    tolerance = _tolerance(check.get("tolerance"), _tolerance(fixture.meta.get("tolerance"), 1e-4))
    absolute, relative, worst, equal, failures = 0.0, 0.0, "", None, []
    floats = False
    for name, array in check["outputs"].items():
        expected = fixture.arrays[array]
        name = name.replace("quantised", "quantized")  # some fixtures spell it so
        if name not in outputs:
            failures.append(f"{name}: not given")
            continue
        got = outputs[name].detach()
        if got.numel() != expected.numel():
            failures.append(f"{name}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
            continue
        got = got.reshape(expected.shape)
        if not expected.is_floating_point():
            same = torch.equal(got.to(expected.dtype), expected)
            equal = same if equal is None else equal and same
            if not same:
                failures.append(f"{name}: {int((got.to(expected.dtype) != expected).sum())} of {got.numel()} differ")
            continue
        floats = True
        error = (got.double() - expected.double()).abs().max().item() if got.numel() else 0.0
        scale = expected.double().abs().max().item() if got.numel() else 0.0
        share = error / scale if scale > 0 else error
        if not share <= tolerance:  # NaN fails too
            failures.append(f"{name}: relative error {share:.2g} exceeds {tolerance:.2g}")
        absolute = max(absolute, error)
        if share >= relative:
            relative, worst = share, name
    return CheckResult(
        check=kind,
        passed=not failures,
        absolute=absolute if floats else None,
        relative=relative if floats else None,
        worst=worst,
        indices_equal=equal,
        outputs=len(check["outputs"]),
        message="; ".join(failures),
    )


def _tolerance(stated: Any, default: float) -> float:
    if isinstance(stated, Mapping):
        stated = stated.get("float")
    return float(stated) if isinstance(stated, int | float) else default


def to_json(results: Iterable[FixtureResult]) -> list[dict[str, Any]]:
    """Plain values for `json.dumps`."""
    return [{"passed": result.passed, **dataclasses.asdict(result)} for result in results]


def print_table(results: Iterable[FixtureResult], console: Any) -> None:
    """Print one row per check on a rich console."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("fixture", "check", "outputs", "max abs error", "max rel error", "worst array", "indices", "result")
    for result in results:
        for check in result.checks:
            verdict = "[green]pass[/]" if check.passed else "[yellow]optional[/]" if check.optional else "[red]FAIL[/]"
            table.add_row(
                result.fixture,
                check.check,
                str(check.outputs),
                "-" if check.absolute is None else f"{check.absolute:.1e}",
                "-" if check.relative is None else f"{check.relative:.1e}",
                check.worst,
                "-" if check.indices_equal is None else "equal" if check.indices_equal else "[red]differ[/]",
                verdict + (f" {escape(check.message)}" if check.message else ""),
            )
    console.print(table)
