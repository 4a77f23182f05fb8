"""`zoo export`: a model as programs, as the zoo's own file, or as diffusers or transformers has it; what was written is
run.
"""

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
    TRANSFORMERS = "transformers"


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
    axes = len(model.spec.size or ()) or {"audio": 1, "image": 2}.get(model.spec.modality, 3)
    sides = None if size is None else (size,) * axes
    written: list[dict[str, Any]]
    if form is Format.SAFETENSORS:
        from zoo.registry import save_model

        written = [{"file": str(save_model(model, out))}]
        if push_to is not None:
            from zoo import hub
            from zoo.cli.hub_card import write_card

            write_card(model, out, push_to)
            written.append({"file": hub.push(out, push_to)})
    elif form is Format.DIFFUSERS:
        from zoo.interop.diffusers import to_diffusers

        to_diffusers(model).save_pretrained(out)
        written = [{"file": str(path)} for path in sorted(out.iterdir())]
    elif form is Format.TRANSFORMERS:
        from zoo.interop.transformers import save

        saved = save(model, out, size=sides)
        written = [{"file": str(path)} for path in saved.files]
        about = {"file": str(out), "class": saved.kind, "tokens": saved.tokens, "samples": saved.samples}
        written.append(about)
    else:
        from zoo.interop.export import export as export_programs

        found = export_programs(model, out, "onnx" if form is Format.ONNX else "torch-export", size=sides)
        written = [{**vars(program), "file": program.file and str(program.file)} for program in found]
    if json:
        print_json(written)
        return
    for program in written:
        typer.echo(f"{program['file']}{_checked(program)}" if program["file"] else f"not written: {program['reason']}")


def _checked(program: dict[str, Any]) -> str:
    if "class" in program:
        same, near = program["tokens"], program["samples"]
        kind = f"transformers.{program['class']}.from_pretrained reads it"
        return f": {kind}; {same:.2%} of the tokens equal, samples equal within {near:.1g}"
    if "part" not in program:
        return ""
    free = " and ".join(filter(None, [", ".join(program["free"][:-1]), *program["free"][-1:]])) or "nothing"
    same = program["agreement"]
    checked = f"{same:.2%} of the tokens equal" if program["part"] == "encode" else f"samples equal within {same:.1g}"
    ports = f"{', '.join(program['inputs'])} -> {', '.join(program['outputs'])}"
    return f": {ports}; run on another signal, {checked}; free: {free}"
