"""The HTTP API and the page. It keeps uploads in memory and writes no file.

Uploads are plain bodies, not forms: nothing is spooled to disk, and no page of another site can send one unasked. A
body without a type is taken for bytes (RFC 9110, 8.3), but not from a page, which could send such to any site.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from zoo import hub
from zoo.serve.shelf import Busy, Gone, Late, Offer, Shelf
from zoo.serve.trial import Limits, Trial, attempt

if TYPE_CHECKING:
    from fastapi import FastAPI

    from zoo.tokenizer import Tokenizer

_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {  # the page needs nothing but itself
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_LOOPBACK = ("127.0.0.1", "localhost")
_BODY = {  # of OpenAPI: FastAPI itself knows only forms and JSON
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
}
_PROBLEMS = {
    403: "The licence of the weights forbids commercial use and has not been accepted.",
    408: "The upload did not arrive in time.",
    413: "The file is too large.",
    415: "The body is no file: expected a Content-Type of application/octet-stream, image/* or audio/*.",
    422: "The file cannot be read or is beyond the limits, or the model does not take an option.",
    503: "The queue is full, the model stayed busy, or its weights cannot be had.",
    504: "The model did not end in time.",
}


@dataclass(frozen=True)
class Problem:
    """What went wrong, for people to read."""

    error: str


@dataclass(frozen=True)
class Offers:
    """What can be tried, and within which limits."""

    models: list[Offer]
    limits: Limits


def create_app(
    offers: Sequence[Offer],
    load: "Callable[[str], Tokenizer]",
    limits: Limits | None = None,
    *,
    kept: int = 4,
    host: str = "127.0.0.1",
) -> "FastAPI":
    """The application, to be run by an ASGI server in one process.

    Args:
        offers: the models, the first of which the page takes at its start.
        load: gives the model of an offer's name.
        limits: of uploads and requests.
        kept: how many models stay in memory.
        host: where it listens. On the loopback, requests for another host's name are refused: a page of another site
            could send them through a name that leads here.

    Raises:
        ValueError: no offers, or fewer than one model to keep.
        ImportError: FastAPI is not installed.
    """
    from fastapi import FastAPI, HTTPException, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.exceptions import HTTPException as StarletteHTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if not offers or kept < 1:
        raise ValueError(f"expected at least one model to offer and to keep, got {len(offers)} and {kept}")
    limits = limits or Limits()
    shelf = Shelf([offer.name for offer in offers], load, kept=kept, places=limits.places)
    page = _PAGE.read_text(encoding="utf-8")
    app = FastAPI(
        title="Tokenizer zoo", description="Try a tokenizer on a photo or clip.", docs_url=None, redoc_url=None
    )  # their pages fetch scripts from elsewhere
    allowed = [*_LOOPBACK] if host in _LOOPBACK else ["*"]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)

    def problem(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers)

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors()))

    @app.exception_handler(Exception)
    def failed(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "the server failed; its log tells why")

    async def upload(request: Request, until: float) -> bytes:
        """The body, read no further than the limit."""
        headers = request.headers
        untyped = "" if "origin" in headers else "application/octet-stream"  # pages of other sites cannot hide theirs
        kind = headers.get("content-type", untyped).partition(";")[0].strip().lower()
        if kind != "application/octet-stream" and not kind.startswith(("image/", "audio/")):
            wanted = "a file as the body, with a Content-Type of application/octet-stream, image/* or audio/*"
            raise HTTPException(415, f"expected {wanted}, got {kind!r}")
        too_large = HTTPException(413, f"expected a file of at most {limits.upload_bytes:,} bytes, got more")
        if int(request.headers.get("content-length", 0)) > limits.upload_bytes:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout_at(until):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limits.upload_bytes:
                        raise too_large
        except TimeoutError as error:
            raise HTTPException(408, f"expected the file within {limits.request_seconds:g} s") from error
        if not data:
            raise HTTPException(422, "expected a file, got an empty body")
        return bytes(data)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    @app.get("/api/models")
    @app.api_route("/api/models", methods=["GET", "HEAD"], include_in_schema=False)  # answers; the other describes
    def models() -> Offers:
        """The models that can be tried, and the limits of uploads."""
        return Offers(list(offers), limits)

    name: Any = Literal[tuple(offer.name for offer in offers)]
    problems: Any = {status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()}

    @app.post("/api/roundtrip", responses=problems, openapi_extra={"requestBody": _BODY})
    async def roundtrip(
        request: Request,
        model: Annotated[name, Query(description="A name of /api/models.")],
        num_tokens: Annotated[int | None, Query(ge=1, le=1 << 31, description="Of models that take it.")] = None,
        num_codebooks: Annotated[int | None, Query(ge=1, le=1 << 31, description="Of models that take it.")] = None,
    ) -> Trial:
        """The body, a photo or clip, to tokens and back."""
        until = asyncio.get_running_loop().time() + limits.request_seconds
        try:
            with shelf.place():
                data = await upload(request, until)
                work = partial(attempt, data=data, limits=limits, num_tokens=num_tokens, num_codebooks=num_codebooks)
                return await shelf.lend(model, work, until=until, gone=request.is_disconnected)
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "2"}) from error
        except Late as error:
            raise HTTPException(504, str(error)) from error
        except Gone as error:
            raise HTTPException(408, "the client has left") from error
        except hub.LicenceError as error:
            raise HTTPException(403, str(error)) from error
        except hub.HubError as error:
            raise HTTPException(503, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    return app
