"""`zoo fit` and `zoo validate`: a recipe run by Lightning."""

from __future__ import annotations

from collections.abc import Sequence


def run(verb: str, arguments: Sequence[str]) -> None:
    """Run a recipe.

    Args:
        verb: "fit" or "validate".
        arguments: of LightningCLI: `--config NAME_OR_FILE`, and any field by its dotted name.
    """
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from trainers.callbacks import CodebookUsage, ExportModel, ReconstructionGrid
    from trainers.recipes import find_recipe

    class RecipeCLI(LightningCLI):
        def add_arguments_to_parser(self, parser) -> None:  # noqa: ANN001
            parser.add_argument("--out", default="runs", help="folder that holds the logs and checkpoints of each run")

        def instantiate_trainer(self, **settings) -> lightning.Trainer:  # noqa: ANN003
            out = self._get(self.config, "out")
            if self._get(self.config_init, "trainer.logger") is None:
                settings["logger"] = [board := TensorBoardLogger(out, name=None), CSVLogger(board.log_dir, "", "")]
            return super().instantiate_trainer(**settings)

    RecipeCLI(
        model_class=lightning.LightningModule,
        datamodule_class=lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [
                LearningRateMonitor("step"),
                ModelCheckpoint(save_last=True, save_top_k=1, monitor=None),
                ReconstructionGrid(),
                CodebookUsage(),
                ExportModel(),
            ]
        },
        args=[verb, *_with_recipe_paths(arguments, find_recipe)],
    )


def _with_recipe_paths(arguments: Sequence[str], find) -> list[str]:  # noqa: ANN001
    """The arguments with the value of each --config turned into a path."""
    result = list(arguments)
    for i, argument in enumerate(result):
        if argument.startswith("--config="):
            result[i] = f"--config={find(argument.removeprefix('--config='))}"
        elif argument == "--config" and i + 1 < len(result):
            result[i + 1] = str(find(result[i + 1]))
    return result
