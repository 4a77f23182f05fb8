"""The registry: a name -> its card -> the family's config -> a model with weights."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo import cards, checkpoint, hub
from zoo.cards import ModelCard
from zoo.config import Config, ConfigError
from zoo.model import Model
from zoo.quantizers import QUANTIZERS

logger = logging.getLogger("zoo")
Class = TypeVar("Class", bound=type[Model])
_ROOT = Path(__file__).resolve().parent.parent


class UnknownModelError(ValueError):
    """No model of that name; the message gives the nearest names."""


@dataclass(frozen=True)
class Family:
    """A registered family: the model class, its config class, and the module that holds its key maps."""

    name: str
    model: type[Any]  # a Tokenizer, or another subclass of zoo.model.Model
    config: type[Config]

    @property
    def module(self) -> ModuleType:
        return sys.modules[self.model.__module__]


class Registry:
    """Families by name, registered when their module is imported, and the cards of the manifests."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator: make a model known under a family name. Its `__init__` states the config's type."""

        def add(model: Class) -> Class:
            known = self._families.get(name)
            if known is not None and known.model.__module__ != model.__module__:
                raise ValueError(f"family {name!r} is already registered by {known.model.__module__}")
            hints = typing.get_type_hints(model.__init__)  # type: ignore[misc]
            self._families[name] = Family(name, model, hints["config"])  # type: ignore[arg-type]
            return model

        return add

    def family(self, name: str, module: str | None = None) -> Family:
        """The family of that name, importing the module that defines it where the manifests tell one."""
        if name not in self._families:
            module = module or next((m.module for m in cards.manifests() if m.family == name), None)
            if module is None:
                raise UnknownModelError(_unknown(name, [*self._families, *(m.family for m in cards.manifests())]))
            import_module(module)
        if name not in self._families:
            raise ImportError(f"module {module} registers no family {name!r}")
        return self._families[name]

    def families(self) -> list[str]:
        """Names of all families: those of the manifests, and those registered since."""
        return sorted({*self._families, *(manifest.family for manifest in cards.manifests())})

    def family_of(self, model: Model) -> Family:
        """The family that a model belongs to.

        Raises:
            ValueError: its class is not registered.
        """
        for family in self._families.values():
            if family.model is type(model):
                return family
        raise ValueError(f"expected a model of a registered family, got {type(model).__name__}")

    def card(self, name: str) -> ModelCard:
        """The card of `name.tag`, of the default tag of `name`, or of any model of a family, by the family's name.

        Raises:
            UnknownModelError: no such name.
        """
        known = cards.all_cards()
        for card in known:
            if name in (card.full_name, card.name, *card.aliases):
                return card
        if name in self.families():
            return self._card_of_family(name)
        raise UnknownModelError(_unknown(name, [*(card.full_name for card in known), *self.families()]))

    def _card_of_family(self, name: str) -> ModelCard:
        """Default config, and every layout in which models of the family are published."""
        family = self.family(name)
        published = [card for card in cards.all_cards() if card.family == name]
        with torch.device("meta"):
            model = family.model(family.config())  # type: ignore[call-arg, arg-type]
        return ModelCard(
            name, "default", name, family.model.__module__, **model.described(),
            sizes="file" if hasattr(family.module, "sizes_from_tensors") else "config",
            container=("state_dict", None),
            key_map=tuple(dict.fromkeys(["KEY_MAP", *(key_map for card in published for key_map in card.key_maps)])),
        )  # fmt: skip


registry = Registry()
register = registry.register


def import_module(name: str) -> ModuleType:
    """Import a module of this project; when another package stands in the way of its name, the error says so."""
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        _explain_shadow(package, error)
        raise
    _explain_shadow(package, None)
    return module


def _explain_shadow(package: str, error: ImportError | None) -> None:
    found = sys.modules.get(package)
    folders = [Path(folder) for folder in getattr(found, "__path__", [])]
    ours = _ROOT / package
    if found is None or not ours.is_dir() or ours in folders:
        return
    place = getattr(found, "__file__", None) or (folders[0] if folders else "?")
    raise ImportError(
        f"the name {package!r} is taken by {place}, which hides the package of the zoo in {ours}; rename that file or "
        f"start python in another folder (python puts the current folder, or PYTHONPATH, first)"
    ) from error


def list_models(pattern: str = "*", **filters: Any) -> list[str]:
    """Full names of the models that match a glob and the filters of `zoo.cards.select`."""
    return [card.full_name for card in cards.select(cards.all_cards(), pattern, **filters)]


@torch.inference_mode(False)
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool | None = None,
    checkpoint: str | Path | None = None,
    accept_licence: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compile: bool | str = False,
    **changes: Any,
) -> Any:
    """Build a model of the zoo, in evaluation mode: a Tokenizer, or a Projector where the name is that of one.

    Args:
        name: `name[.tag]` (see `list_models`), `hf-hub:owner/repo[@revision]`, `local-dir:folder`, a file that
            `save_model` wrote, or a family's name for a model of any sizes.
        pretrained: load the published weights; default: only where `name` is itself a place of weights.
        checkpoint: a local weight file, in the published layout or in ours, to load instead. Where the card has
            `sizes: file`, as that of a family's name, its tensors tell the sizes of the model.
        accept_licence: agree to a non-commercial licence of the weights.
        device, dtype: where the model goes, and in which precision, after loading.
        compile: of a tokenizer, let torch.compile make its two networks fast at their first use; a text is its mode,
            such as "reduce-overhead" (CUDA graphs, for small batches) or "max-autotune".
        changes: config fields to change. `quantizer="fsq"` (or a config) puts another quantizer in; further keywords
            are then fields of that quantizer. The rest of pretrained weights still loads.

    Raises:
        UnknownModelError: no such name (the message gives the nearest).
        ConfigError: a change that the config does not allow.
        CheckpointError: weights that do not fit.
        zoo.hub.HubError: weights that cannot be had.
    """
    name = os.fspath(name)
    file = _own_file(name)
    if file is not None:
        return _finish(load_model(file, changes), device, dtype, compile)
    card = registry.card(name)
    family = registry.family(card.family, card.module)
    stated = family.config.from_dict(card.config)
    config = _changed(stated, changes)
    path = Path(checkpoint) if checkpoint is not None else _published(card, accept_licence) if pretrained else None
    state, held = ({}, None) if path is None else read_checkpoint(family, card, path)
    if path is not None and card.sizes == "file":
        held = held or _told(family, card, path, state, stated, changes)
        config = _changed(held, changes)
    model = family.model(config)  # type: ignore[call-arg, arg-type]
    model.name, model.card = card.full_name, card
    if changes or config != stated:
        model.card = dataclasses.replace(card, metrics=() if changes else card.metrics, **model.described())
    if path is not None:
        _load(model, card, path, state, replaced=_other_quantizer(held or stated, config))
    return _finish(model, device, dtype, compile)


def _finish(model: Model, device: str | torch.device | None, dtype: torch.dtype | None, compile: bool | str) -> Any:
    if model.device.type != "meta":
        _ = model.source  # the fingerprint is of the weights as loaded, before any cast
    model = model.to(device=device, dtype=dtype).eval()
    return model.compiled(None if compile is True else compile) if compile else model


def _own_file(name: str) -> Path | None:
    """The safetensors file of a place name: hf-hub:, local-dir:, or a path."""
    kind, _, rest = name.partition(":")
    if kind == "hf-hub":
        repo, _, revision = rest.partition("@")
        return hub.resolve(hub.WeightSource(repo=repo, file="model.safetensors", revision=revision or None), name=name)
    if kind == "local-dir":
        folder = Path(rest).expanduser()
        if not (folder / "model.safetensors").is_file():
            raise hub.HubError(f"{folder}: expected a folder with model.safetensors in it (`zoo convert` writes one)")
        return folder / "model.safetensors"
    looks_like_path = name.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".bin")) or os.sep in name
    if not looks_like_path:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise hub.HubError(f"{path}: a folder; expected local-dir:{path}" if path.is_dir() else f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: a published file does not say its model; use create_model(NAME, checkpoint={name!r})"
        )
    return path


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with changes: its own fields, a quantizer by name or config, and fields of that quantizer."""
    changes = dict(changes)
    own = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    quantizer = changes.pop("quantizer", None)
    rest = {key: changes.pop(key) for key in list(changes) if key not in own}
    if quantizer is None:
        if rest:
            raise ConfigError(f"{type(config).__name__} has no field {', '.join(rest)}; its fields are {sorted(own)}")
        return config.replace(**changes) if changes else config
    if "quantizer" not in own:
        raise ConfigError(f"{type(config).__name__} has no quantizer to replace")
    if isinstance(quantizer, str):
        if quantizer not in QUANTIZERS:
            raise ConfigError(f"quantizer: expected one of {', '.join(QUANTIZERS)}, got {quantizer!r}")
        quantizer = QUANTIZERS[quantizer].from_dict(rest)
    elif isinstance(quantizer, Mapping):
        if rest:
            raise ConfigError(f"{type(config).__name__} has no field {', '.join(rest)}; its fields are {sorted(own)}")
    elif rest:
        quantizer = quantizer.replace(**rest)
    return config.replace(**changes, quantizer=quantizer)


def _other_quantizer(before: Config, after: Config) -> bool:
    return getattr(before, "quantizer", None) != getattr(after, "quantizer", None)


# -- weights -------------------------------------------------------------------------------------------------------


def _published(card: ModelCard, accept_licence: bool) -> Path:
    """The local file of the published weights."""
    if card.source is None:
        raise ValueError(f"{card.full_name} has no published weights; use checkpoint=FILE, or pretrained=False")
    if card.source.path is None:  # what comes with the package is under its licence
        hub.require_licence(card.full_name, card.licence, non_commercial=card.non_commercial, accept=accept_licence)
    return hub.resolve(card.source, name=card.full_name)


def read_checkpoint(family: Family, card: ModelCard, path: Path) -> tuple[dict[str, Tensor], Config | None]:
    """The tensors of a weight file under the zoo's own names, and the config that a file in our layout holds.

    Raises:
        CheckpointError: a file that cannot be read, of another family, or whose keys are not those of a published
            layout of `card`; names the nearest family.
    """
    if path.suffix == ".safetensors" and (about := checkpoint.metadata(path).get("zoo")) is not None:
        facts = json.loads(about)
        if facts["family"] != family.name:
            raise checkpoint.CheckpointError(f"{path}: expected a model of {family.name}, got one of {facts['family']}")
        return checkpoint.read(path), family.config.from_dict(facts["config"])
    published = checkpoint.read(path, container=card.container)
    key_map = key_map_of(family, card, published)
    if key_map is None:
        raise checkpoint.CheckpointError(
            f"{path}: expected a file that `save_model` or `zoo convert` wrote (the family {family.name} has no "
            f"published layout){_nearest(published)}"
        )
    try:
        return key_map(published), None
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(
            f"{path}: not a checkpoint of {card.full_name}: {error}{_nearest(published)}"
        ) from error


def key_map_of(family: Family, card: ModelCard, names: Iterable[str]) -> checkpoint.KeyMap | None:
    """The key map of a card that covers most of the names in a file; None where the family has no published layout."""
    names = list(names)
    known = [getattr(family.module, name) for name in card.key_maps if hasattr(family.module, name)]
    if not known:
        return None
    key_map: checkpoint.KeyMap = max(known, key=lambda key_map: key_map.covered(names))
    return dataclasses.replace(key_map, prefix=card.prefix or key_map.prefix)


def _told(
    family: Family, card: ModelCard, path: Path, state: Mapping[str, Tensor], stated: Config, changes: Mapping[str, Any]
) -> Config:
    """The config whose sizes the tensors tell; what they do not tell is as changed, or else as stated."""
    own = {field.name for field in dataclasses.fields(stated)} - {"quantizer"}  # type: ignore[arg-type]
    assumed = stated.replace(**{name: value for name, value in changes.items() if name in own})
    try:
        return assumed.replace(**family.module.sizes_from_tensors(state, assumed))
    except (checkpoint.CheckpointError, ConfigError) as error:
        raise checkpoint.CheckpointError(f"{path}: not a checkpoint of {card.full_name}: {error}") from error


def _load(model: Model, card: ModelCard, path: Path, state: dict[str, Tensor], *, replaced: bool) -> None:
    """Load the tensors that `read_checkpoint` gave, strictly.

    Args:
        replaced: the model's quantizer is another than the file's. Then its weights, and projections whose shape it
            changed, stay fresh, which is logged and noted on the card.

    Raises:
        CheckpointError: other keys or shapes than the model's.
    """
    absent: list[str] = []
    if card.part is not None:
        loaded = {key.partition(".")[0] for key in state}
        absent = [f"{name}.*" for name, _ in model.named_children() if name not in loaded]
    if replaced:
        state, fresh = _without_quantizer(model, state)
        absent += fresh
        note = f"quantizer replaced; fresh weights: {', '.join(fresh)}"
        logger.warning("%s: %s", model.name, note)
        model.card = dataclasses.replace(model.card or card, notes=note)
    try:
        checkpoint.load_into(model, state, absent=absent)
    except checkpoint.CheckpointError as error:
        text = f"{path}: not a checkpoint of {card.full_name}: {error}"
        if card.sizes == "config" and hasattr(import_module(card.module), "sizes_from_tensors"):
            text += f"\nOne of other sizes loads by create_model({card.family!r}, checkpoint=FILE)"
        raise checkpoint.CheckpointError(text) from error


def _without_quantizer(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    own = model.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith("quantizer.") and k in own and v.shape == own[k].shape}
    return kept, [key for key in own if key not in kept]


def _nearest(published: Mapping[str, Tensor]) -> str:
    """A sentence that names the family whose key map knows most of the keys."""
    best, share = "", 0.0
    for manifest in cards.manifests():
        for name in sorted({name for card in manifest.cards for name in card.key_maps}):
            key_map = getattr(import_module(manifest.module), name, None)
            if key_map is not None:
                known = sum(key_map.name(key, published) is not None for key in published) / max(1, len(published))
                if known > share:
                    best, share = manifest.family, known
    return f"; nearest architecture: {best} (knows {share:.0%} of the keys)" if best else ""


def save_model(model: Model, folder: str | Path) -> Path:
    """Write `model.safetensors` (weights, config and card in one), `config.json` and `README.md` into a folder.

    Returns:
        The safetensors file, which `create_model` loads by its path; the folder loads as `local-dir:folder`.

    Raises:
        ValueError: a model without data, one that holds only an encoder or a decoder, or of no registered family.
    """
    family = registry.family_of(model)
    if model.card is not None and model.card.part is not None:
        raise ValueError(f"{model.name} holds only the {model.card.part}; expected a whole model")
    about: dict[str, Any] = {
        "format": 1,
        "name": model.name,
        "family": family.name,
        "module": type(model).__module__,
        "config": model.config.to_dict(),
        "fingerprint": model.source.fingerprint,
    }
    if model.card is not None:
        about |= {key: getattr(model.card, key) for key in ("licence", "non_commercial", "paper", "code", "notes")}
        about["metrics"] = [dataclasses.asdict(metric) for metric in model.card.metrics]
    text, folder = json.dumps(about, indent=2), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    checkpoint.save(path, model.state_dict(), {"zoo": text, "format": "pt"})
    (folder / "config.json").write_text(text + "\n")
    (folder / "README.md").write_text(_readme(about))
    return path


@torch.inference_mode(False)
def load_model(path: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The model of a file that `save_model` wrote."""
    about = checkpoint.metadata(path).get("zoo")
    if about is None:
        raise checkpoint.CheckpointError(
            f"{path}: expected a file that `save_model` or `zoo convert` wrote; for a published file use "
            "create_model(NAME, checkpoint=...)"
        )
    facts = json.loads(about)
    family = registry.family(facts["family"], facts["module"])
    held = family.config.from_dict(facts["config"])
    config = _changed(held, changes or {})
    model = family.model(config)  # type: ignore[call-arg, arg-type]
    name, _, tag = facts["name"].rpartition(".")
    card = ModelCard(
        name or facts["name"], tag, facts["family"], facts["module"], **model.described(),
        source=hub.WeightSource(path=str(path)),
        metrics=() if changes else tuple(cards.Metric(**metric) for metric in facts.get("metrics", ())),
        **{key: facts[key] for key in ("licence", "non_commercial", "paper", "code", "notes") if key in facts},
    )  # fmt: skip
    model.name, model.card = facts["name"], card
    _load(model, card, path, checkpoint.read(path), replaced=_other_quantizer(held, config))
    return model


def _readme(about: Mapping[str, Any]) -> str:
    lines = [f"# {about['name']}", "", f"A model of the family `{about['family']}`.", "", "```python"]
    lines += ["import zoo", 'model = zoo.create_model("local-dir:.")', "```", ""]
    lines += [
        f"- {key}: {about[key]}" for key in ("licence", "paper", "code", "notes", "fingerprint") if about.get(key)
    ]
    if about.get("metrics"):
        lines += ["", "| metric | value | protocol |", "|---|---|---|"]
        lines += [f"| {metric['name']} | {metric['value']} | {metric['protocol']} |" for metric in about["metrics"]]
    return "\n".join(lines) + "\n"


def _unknown(name: str, known: list[str]) -> str:
    lowered = {known_name.lower(): known_name for known_name in known}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=5, cutoff=0.0)]
    return f"unknown model {name!r}; nearest names: {', '.join(near)}"
