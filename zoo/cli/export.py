"""`zoo export`: a model as programs, as the zoo's own file, or in the layout of diffusers; what was written is run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, load_model, print_json


class Format(StrEnum):
    TORCH_EXPORT = "torch-export"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    DIFFUSERS = "diffusers"


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name in the zoo, hf-hub:owner/repo, or a saved model.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    form: Annotated[Format, typer.Option("--format", help="What is written.")] = Format.TORCH_EXPORT,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side, or samples, that programs are traced with.")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(help="owner/repo of the hub, which gets the files of --format safetensors.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for use without the zoo, or for the hub."""
    model = load_model(name)
    if push_to is not None and form is not Format.SAFETENSORS:
        raise ValueError(f"--push-to: expected --format safetensors, got {form}")
    written: list[dict[str, Any]]
    if form is Format.SAFETENSORS:
        from zoo.registry import save_model

        written = [{"file": str(save_model(model, out))}]
        if push_to is not None:
            from zoo import hub

            written.append({"file": hub.push(out, push_to)})
    elif form is Format.DIFFUSERS:
        from zoo.interop.diffusers import to_diffusers

        to_diffusers(model).save_pretrained(out)
        written = [{"file": str(path)} for path in sorted(out.iterdir())]
    else:
        from zoo.interop.export import export as export_programs

        axes = len(model.spec.size or ()) or {"audio": 1, "image": 2}.get(model.spec.modality, 3)
        found = export_programs(
            model, out, "onnx" if form is Format.ONNX else "torch-export", size=None if size is None else (size,) * axes
        )
        written = [{**vars(program), "file": str(program.file)} for program in found]
    if json:
        print_json(written)
        return
    for program in written:
        typer.echo(program["file"] + _checked(program))


def _checked(program: dict[str, Any]) -> str:
    if "part" not in program:
        return ""
    free = " and ".join(filter(None, [", ".join(program["free"][:-1]), *program["free"][-1:]])) or "nothing"
    same = program["agreement"]
    checked = f"{same:.2%} of the tokens equal" if program["part"] == "encode" else f"samples equal within {same:.1g}"
    return f": run on another signal, {checked}; free: {free}"
