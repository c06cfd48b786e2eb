"""Serve the page and its JSON API to one user on this machine."""

import time
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from homework.utils.errors import InputError

from . import library
from .library import UPLOADS, Library
from .models import Models

HOSTS = ["127.0.0.1", "localhost"]  # accepted Host headers: protects against DNS rebinding
STATIC = Path(str(resources.files(__package__) / "static"))
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

Name = Annotated[str, Body(embed=True)]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Lines = Annotated[list[Line], Field(min_length=1, max_length=20)]


def make_app(views: Library, models: Models) -> FastAPI:
    """Create the application; `models` may be loaded later or never."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.exception_handler(InputError)
    def report_bad_data(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.exception_handler(RequestValidationError)
    def report_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.middleware("http")
    async def protect(request: Request, call_next):
        """Reject requests from other sites' pages, and keep external content out of this one."""
        origin = request.headers.get("origin")
        if request.method != "GET" and origin and urlsplit(origin).netloc != request.headers.get("host"):
            return JSONResponse({"detail": "cross-origin requests are not allowed"}, 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    def get_page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/splits")
    def get_splits() -> dict:
        return {"splits": views.splits, "uploads": UPLOADS}

    @app.get("/api/status")
    def get_status(split: str = UPLOADS) -> dict:
        in_split = views.in_split(split)
        wrong, checked = models.find_wrong(split, in_split)
        return {"models": models.state, "views": len(in_split), "checked": checked, "wrong": len(wrong)}

    @app.get("/api/views/{split}")
    def get_views(split: str, track: str = "", kart: str = "", number: int | None = None, wrong: bool = False) -> dict:
        in_split = views.in_split(split)
        found = library.filter_views(in_split, track, kart, number)
        keys = [key for key in models.find_wrong(split, in_split)[0] if key in found] if wrong else list(found)
        return {"keys": keys, "total": len(in_split)} | library.count_facets(in_split, track, kart, number)

    @app.get("/api/views/{split}/{key}")
    def get_view(split: str, key: str) -> dict:
        return library.view_to_json(views.find(split, key))

    @app.get("/api/images/{split}/{key}")
    def get_image(split: str, key: str) -> FileResponse:
        path = views.find(split, key).path
        if not path.exists():
            raise HTTPException(404, f"{path.name}: no such image")
        return FileResponse(path)

    @app.get("/api/answers/{split}/{key}")
    def get_answers(split: str, key: str) -> dict:
        return {"answers": models.answer_labelled(split, views.find(split, key))}

    @app.post("/api/ask")
    def ask(split: Name, key: Name, question: Annotated[Line, Body()]) -> dict:
        view, start = views.find(split, key), time.perf_counter()
        answer, probability = models.ask(view, question)
        seconds, truth = time.perf_counter() - start, dict(view.pairs).get(question)
        return {"answer": answer, "probability": probability, "truth": truth, "seconds": seconds}

    @app.post("/api/compare")
    def compare(split: Name, key: Name, texts: Annotated[Lines, Body()]) -> dict:
        return {"probabilities": models.compare(views.find(split, key), texts)}

    @app.post("/api/check")
    def start_check(split: Name) -> dict:
        models.start_check(split, views.in_split(split))
        return {}

    @app.delete("/api/check")
    def stop_check() -> dict:
        models.stop_check()
        return {}

    @app.post("/api/upload")
    async def upload(request: Request) -> dict:
        """Store the body, an image file; reading stops at the size limit."""
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > library.MAX_UPLOAD_BYTES:
                break
        entry = await run_in_threadpool(views.add_upload, bytes(content))
        return {"split": UPLOADS, "key": entry.key}

    return app
