"""`zoo fit` and `zoo validate`: a recipe run by Lightning."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

_ENOUGH = ("--config", "-c", "--model", "--help", "-h", "--print_config")  # one of these must be among the arguments


def fit(context: typer.Context) -> None:
    """Train by a recipe: `zoo fit --config RECIPE --data.train FOLDER`; `zoo fit --help` shows every setting."""
    run("fit", context.args)


def validate(context: typer.Context) -> None:
    """Measure a recipe's model on its validation data: `zoo validate --config RECIPE --ckpt_path FILE`."""
    run("validate", context.args)


def run(verb: str, arguments: Sequence[str]) -> None:
    """Run a recipe.

    Args:
        verb: "fit" or "validate".
        arguments: of LightningCLI: `--config NAME_OR_FILE`, and any field by its dotted name. `--ckpt_path last` takes
            the newest last.ckpt below the folder `--out`.

    Raises:
        ValueError: no recipe, or a setting that cannot work; nothing has been read or written then.
        SystemExit: with status 2, for an unknown key or a value of the wrong type, which are told on stderr.
    """
    from trainers.recipes import CONFIGS, find_recipe

    if not any(argument.startswith(_ENOUGH) for argument in arguments):
        shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise ValueError(
            f"zoo {verb} needs a recipe: zoo {verb} --config RECIPE --data.train FOLDER --data.val FOLDER\n"
            f"  RECIPE is a YAML file or one of the shipped recipes: {shipped}\n"
            f"  zoo {verb} --help shows every setting; --config RECIPE --print_config prints a recipe in full"
        )
    args = [verb, *_spelled_out(arguments, find_recipe)]
    import lightning.pytorch as lightning
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

    from trainers.callbacks import (
        CodebookUsage,
        DiscriminatorHealth,
        ExportModel,
        LastCheckpoint,
        ReconstructionGrid,
        StopOnNonFinite,
        Throughput,
    )
    from trainers.checkpoint_io import AtomicCheckpointIO

    class RecipeCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--out", default="runs", help="folder that holds the logs and checkpoints of each run")
            parser.add_argument("--init", help="pretrained, or a file of weights: short for --model.init_args.init")
            parser.add_argument("--wandb", default=None, help="project of Weights & Biases to log to as well")

        def parse_arguments(self, parser: Any, args: Any) -> None:
            self.config = parser.parse_args(_merged(args, parser))

        def _parse_ckpt_path(self) -> None:
            """The recipe rules, not the settings of the run that is resumed."""

        def before_instantiate_classes(self) -> None:
            settings = self.config[self.config.subcommand]
            settings.ckpt_path = _checkpoint(settings.ckpt_path, Path(settings.out))
            if settings.wandb is not None and importlib.util.find_spec("wandb") is None:
                raise ValueError(
                    "--wandb: expected the package wandb to be installed (pip install 'tokenizer-zoo[wandb]')"
                )

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except ValueError as error:  # jsonargparse wraps what a constructor says in its own trials and their values
                raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None

        def instantiate_trainer(self, **settings: Any) -> lightning.Trainer:
            out = self._get(self.config, "out")
            if self._get(self.config_init, "trainer.logger") is None:
                settings["logger"] = [board := TensorBoardLogger(out, name=None), CSVLogger(board.log_dir, "", "")]
                if (project := self._get(self.config, "wandb")) is not None:
                    settings["logger"].append(WandbLogger(project=project, save_dir=board.log_dir))
            if self._get(self.config_init, "trainer.devices") == "auto":
                settings |= launched(os.environ)
            stated = {type(callback) for callback in self._get(self.config_init, "trainer.callbacks") or ()}
            defaults = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [one for one in defaults if type(one) not in stated]
            if self._get(self.config_init, "trainer.plugins") is None:
                settings["plugins"] = [AtomicCheckpointIO()]
            return super().instantiate_trainer(**settings)

    warnings.filterwarnings("ignore", message="Experiment logs directory")  # the two loggers share it
    try:
        RecipeCLI(
            model_class=lightning.LightningModule,
            datamodule_class=lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "callbacks": [
                    LearningRateMonitor("step"),
                    LastCheckpoint(save_last=True, save_top_k=1, monitor=None),
                    ReconstructionGrid(),
                    CodebookUsage(),
                    DiscriminatorHealth(),
                    Throughput(),
                    StopOnNonFinite(),
                    ExportModel(),
                ]
            },
            parser_kwargs={"prog": "zoo"},
            args=args,
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        summary = "\n".join(str(error).splitlines()[:4])
        raise ValueError(f"--ckpt_path: expected a checkpoint of the recipe's model, got another: {summary}") from error


def launched(environment: Mapping[str, str]) -> dict[str, int]:
    """The Trainer's `devices` and `num_nodes` where torchrun or SLURM has started this process; empty elsewhere.

    Raises:
        ValueError: nodes with unequal numbers of processes, which Lightning cannot run.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        count, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        nodes = count // local
    elif "SLURM_NTASKS" in environment and "SLURM_PROCID" in environment:  # the second is set by srun alone
        count, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", "1"))
        local = count // nodes
    else:
        return {}
    if nodes * local != count:
        raise ValueError(f"expected as many processes on every node, got {count} processes on {nodes} nodes")
    return {"devices": local, "num_nodes": nodes}


def _spelled_out(arguments: Sequence[str], find: Any) -> list[str]:
    """The arguments with the value of each --config turned into a path, and --init into the field of the model's task,
    last, since it needs the recipe to tell the task.
    """
    result: list[str] = []
    last: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c", "--init"):
            result.append(argument)
            continue
        if not equals and (value := next(rest, "")) == "":
            raise ValueError(f"{name}: expected a value, got none")
        if name == "--init":
            last = [f"--model.init_args.init={value}"]
        else:
            result += ["--config", str(find(value))]
    return result + last


_INNER = re.compile(r"--model\.(?:init_args\.)?(?!init_args\.)(\w+)\.(\w+(?:\.\w+)+)")


def _merged(arguments: Sequence[str], parser: Any) -> list[str]:
    """The arguments with those that change a field of an entry (`--model.adversary.discriminator.hidden_channels 32`)
    as one for the whole setting, which the recipe and the other arguments give: jsonargparse would drop the rest of the
    entry.
    """
    from jsonargparse import get_loader

    plain: list[str] = []
    inner: list[tuple[str, str, list[str], str]] = []  # as given, setting, names below it, value
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if (match := _INNER.fullmatch(name)) is None:
            plain.append(argument)
        elif equals or (value := next(rest, "")):
            inner.append((name, match[1], match[2].split("."), value))
        else:
            plain.append(argument)
    if not inner:
        return plain
    quiet = [argument for argument in plain if not argument.startswith("--print_config")]
    stated = parser.parse_args(quiet)[arguments[0]].model.init_args
    changed: dict[str, Any] = {}
    for name, setting, path, value in inner:
        if not isinstance(stated.get(setting, ""), dict | None):
            plain.append(f"{name}={value}")  # no setting with entries: jsonargparse tells what is wrong
            continue
        entry = changed.setdefault(setting, copy.deepcopy(stated[setting] or {}))
        for step in path[:-1]:
            below = entry.get(step)
            entry[step] = below if isinstance(below, dict) else {}
            entry = entry[step]
        entry[path[-1]] = get_loader("yaml")(value)
    return plain + [f"--model.init_args.{setting}={json.dumps(entries)}" for setting, entries in changed.items()]


def _checkpoint(path: str | None, out: Path) -> str | None:
    """The checkpoint that a run starts from; "last" is the newest of all runs in `out`.

    Lightning looks for "last" in the folder of the new run alone, finds nothing, and would start from scratch.
    """
    if path == "last":
        found = sorted(out.rglob("last*.ckpt"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise ValueError(f"--ckpt_path last: expected a last.ckpt in {out} or below, got none")
        return str(found[-1])
    elsewhere = path is None or "://" in path or path.startswith(("best", "hpc", "registry"))
    if not elsewhere and not Path(str(path)).is_file():
        raise ValueError(f"--ckpt_path: expected a file, or last, got {path}")
    return path
