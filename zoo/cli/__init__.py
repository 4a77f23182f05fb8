"""The command line `zoo`: one file per verb. Torch and everything heavy is imported inside the verbs."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zoo.cli import (
    bench,
    compare,
    convert,
    decode,
    demo,
    doctor,
    download,
    encode,
    eval_cir,
    evaluate,
    export,
    info,
    listing,
    parity,
    retrieve,
    roundtrip,
    serve,
    stab,
    sweep,
    tokenize,
    tokens,
    training,
    units,
)
from zoo.cli.common import DEFAULT_MODEL, report
from zoo.hub import HubError

__all__ = ["DEFAULT_MODEL", "app", "main"]


class _Verbs(TyperGroup):
    """Documented errors end a verb with one line and status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `zoo list | head`
            raise
        except (ValueError, HubError, OSError, ImportError) as error:
            report(error)
            raise typer.Exit(1) from error


app = typer.Typer(cls=_Verbs, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def settings(
    debug: Annotated[bool, typer.Option("--debug", envvar="ZOO_DEBUG", help="Show the traceback of errors.")] = False,
) -> None:
    """One zoo for discrete tokenizers: images and audio to a few integers and back."""
    logging.getLogger("zoo").setLevel(logging.DEBUG if debug else logging.NOTSET)


_MODELS, _MEDIA, _TRAINING, _CHECKS = "Models", "Images and tokens", "Training", "Checks"
_ARGUMENTS_PASS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app.command("list", rich_help_panel=_MODELS)(listing.list_models)
app.command("info", rich_help_panel=_MODELS)(info.info)
app.command("download", rich_help_panel=_MODELS)(download.download)
app.command("convert", rich_help_panel=_MODELS)(convert.convert)
app.command("export", rich_help_panel=_MODELS)(export.export)
app.command("demo", rich_help_panel=_MEDIA)(demo.demo)
app.command("roundtrip", rich_help_panel=_MEDIA)(roundtrip.roundtrip)
app.command("encode", rich_help_panel=_MEDIA)(encode.encode)
app.command("decode", rich_help_panel=_MEDIA)(decode.decode)
app.command("compare", rich_help_panel=_MEDIA)(compare.compare)
app.command("sweep", rich_help_panel=_MEDIA)(sweep.sweep)
app.command("eval", rich_help_panel=_MEDIA)(evaluate.evaluate)
app.command("stab", rich_help_panel=_MEDIA)(stab.stab)
app.command("tokenize", rich_help_panel=_MEDIA)(tokenize.tokenize)
app.command("serve", rich_help_panel=_MEDIA)(serve.serve)
app.command("retrieve", rich_help_panel=_MEDIA)(retrieve.retrieve)
app.command("eval-cir", rich_help_panel=_MEDIA)(eval_cir.evaluate)
app.command("tokens", rich_help_panel=_MEDIA)(tokens.tokens)
app.command("fit", rich_help_panel=_TRAINING, context_settings=_ARGUMENTS_PASS)(training.fit)
app.command("units", rich_help_panel=_TRAINING)(units.units)
app.command("validate", rich_help_panel=_TRAINING, context_settings=_ARGUMENTS_PASS)(training.validate)
app.command("parity", rich_help_panel=_CHECKS)(parity.parity)
app.command("bench", rich_help_panel=_CHECKS)(bench.bench)
app.command("doctor", rich_help_panel=_CHECKS)(doctor.doctor)


def main() -> None:
    """Entry point of the program `zoo`."""
    app(prog_name="zoo")
