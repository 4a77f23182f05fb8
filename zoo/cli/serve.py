"""`zoo serve`: a page in the browser, and an HTTP API, to try models on one's own photo or clip."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import Device, choose_device, load_model

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A further model: name, hf-hub:owner/repo, file or folder. Repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in, without a password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_megabytes: Annotated[float, typer.Option(help="Largest file.")] = 16.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture, width x height.")] = 4_000_000,
    max_seconds: Annotated[float, typer.Option(help="Longest clip.")] = 30.0,
    timeout: Annotated[float, typer.Option(help="Seconds from a request to its answer.")] = 120.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests inside at a time; further ones get status 503.")] = 48,
    keep: Annotated[int, typer.Option(min=1, help="Models that stay in memory.")] = 4,
    device: Device = None,
) -> None:
    """Offer the models whose weights are here, and those of --model, on a web page."""
    try:
        import uvicorn

        from zoo.serve.app import create_app
    except ImportError as error:
        raise ImportError(f"zoo serve needs `pip install 'tokenizer-zoo[serve]'` ({error})") from error
    from zoo.registry import registry
    from zoo.serve.shelf import installed, offer_of
    from zoo.serve.trial import Limits

    limits = Limits(round(max_megabytes * 1e6), max_pixels, max_seconds, timeout, queue)
    where = choose_device(device)
    with socket.create_server((host, port)) as listening:  # before models are loaded, so that errors come at once
        loaded: dict[str, Tokenizer] = {}
        for name in models or ():
            model = load_model(name, where)
            is_place = ":" in name or Path(name).exists()  # a name of the zoo may lack its tag
            loaded[name if is_place else model.name] = model
        offers = {name: offer_of(name, model.card or registry.card(model.name)) for name, model in loaded.items()}
        offers |= {offer.name: offer for offer in installed() if offer.name not in offers}

        def load(name: str) -> Tokenizer:
            return loaded.pop(name, None) or load_model(name, where)

        app = create_app(list(offers.values()), load, limits, kept=max(keep, len(loaded)), host=host)
        address = f"http://{host}:{listening.getsockname()[1]}"
        typer.echo(f"{len(offers)} models at {address} (Ctrl-C ends it)")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listening])
