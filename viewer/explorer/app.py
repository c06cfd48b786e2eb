"""The page's server: what it shows and what can be asked, as JSON. Made for one user on this machine."""

import time
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from homework.utils.errors import InputError

from . import library
from .library import UPLOADS, Library, NotAnImageError, TooLargeError, View
from .models import Models, NotReadyError

HOSTS = ["127.0.0.1", "localhost"]  # of a request: a page elsewhere can't reach this one by another name
STATIC = Path(str(resources.files(__package__) / "static"))
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class Asked(BaseModel):
    """A question about a view."""

    split: str
    key: str
    question: Line


class Compared(BaseModel):
    """Texts to compare with a view."""

    split: str
    key: str
    texts: list[Line]


class Checked(BaseModel):
    """A split to find wrong answers in."""

    split: str


def make_app(views: Library, models: Models) -> FastAPI:
    """The application; `models` may be loaded later or never."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.mount("/static", StaticFiles(directory=STATIC))
    _add_errors(app)

    def find(split: str, key: str) -> View:
        try:
            return views.find(split, key)
        except KeyError:
            raise HTTPException(404, "no such view") from None

    def all_of(split: str) -> dict[str, View]:
        try:
            return views.views(split)
        except KeyError:
            raise HTTPException(404, "no such split") from None

    @app.middleware("http")
    async def guard(request: Request, proceed):
        """No other site's page may send anything, and nothing from elsewhere is loaded into ours."""
        origin = request.headers.get("origin")
        if request.method != "GET" and origin and urlsplit(origin).netloc != request.headers.get("host"):
            return JSONResponse({"detail": "only this page may ask"}, 403)
        response = await proceed(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    def home() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/splits")
    def splits() -> dict:
        return {"splits": views.splits, "uploads": UPLOADS, "most_bytes": library.MAX_BYTES}

    @app.get("/api/status")
    def status(split: str = UPLOADS) -> dict:
        of_split = all_of(split)
        wrong, checked = models.wrong(split, of_split)
        return {"models": models.state, "views": len(of_split), "checked": checked, "wrong": len(wrong)}

    @app.get("/api/views/{split}")
    def listing(split: str, track: str = "", kart: str = "", number: int | None = None, wrong: bool = False) -> dict:
        of_split = all_of(split)
        keys = list(of_split) if split == UPLOADS else library.choose(of_split, track, kart, number)
        if wrong:
            known = set(models.wrong(split, of_split)[0])
            keys = [key for key in keys if key in known]
        return {"keys": keys, "of": len(of_split)} | library.facets(of_split, track, kart, number)

    @app.get("/api/views/{split}/{key}")
    def view(split: str, key: str) -> dict:
        return library.describe(find(split, key))

    @app.get("/api/images/{split}/{key}")
    def image(split: str, key: str) -> FileResponse:
        path = find(split, key).path
        if not path.exists():
            raise HTTPException(404, f"{path.name}: no such image")
        return FileResponse(path)

    @app.get("/api/answers/{split}/{key}")
    def answers(split: str, key: str) -> dict:
        return {"answers": models.answer_labelled(split, find(split, key))}

    @app.post("/api/ask")
    def ask(asked: Asked) -> dict:
        found = find(asked.split, asked.key)
        start = time.perf_counter()
        answer, probability = models.ask(found, asked.question)
        truth = dict(found.pairs).get(asked.question)
        seconds = time.perf_counter() - start
        return {"answer": answer, "probability": probability, "truth": truth, "seconds": seconds}

    @app.post("/api/compare")
    def compare(compared: Compared) -> dict:
        if not 1 <= len(compared.texts) <= 20:
            raise HTTPException(422, "between 1 and 20 texts, please")
        found = find(compared.split, compared.key)
        return {"probabilities": models.compare(found, compared.texts)}

    @app.post("/api/check")
    def check(checked: Checked) -> dict:
        models.check(checked.split, all_of(checked.split))
        return {}

    @app.delete("/api/check")
    def stop() -> dict:
        models.stop_checking()
        return {}

    @app.post("/api/upload")
    async def upload(request: Request) -> dict:
        """The body is the file itself; one that is too large is not read to its end."""
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > library.MAX_BYTES:
                break
        kept = await run_in_threadpool(views.add_upload, bytes(content))
        return {"split": UPLOADS, "key": kept.key}

    return app


def _add_errors(app: FastAPI) -> None:
    """What is wrong as one line, under `detail`."""

    def answer(status: int):
        return lambda request, error: JSONResponse({"detail": str(error)}, status)

    for kind, status in ((NotReadyError, 503), (InputError, 500), (TooLargeError, 413), (NotAnImageError, 415)):
        app.add_exception_handler(kind, answer(status))

    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    app.add_exception_handler(RequestValidationError, invalid)
