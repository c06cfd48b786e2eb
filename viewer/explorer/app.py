"""Serve the page and its JSON API to one user on this machine."""

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Body, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from homework.labels.game import KARTS
from homework.labels.questions import QUESTIONS
from homework.utils.errors import InputError

from . import library, listing
from .library import UPLOADS, Library
from .listing import ViewFilters
from .models import Models

HOSTS = ["127.0.0.1", "localhost"]  # accepted Host headers: protects against DNS rebinding
STATIC = Path(str(resources.files(__package__) / "static"))
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

Name = Annotated[str, Body(embed=True)]
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Lines = Annotated[list[Line], Field(min_length=1, max_length=20)]
TRAINED_QUESTIONS = {row.template.format(kart=kart) for row in QUESTIONS for kart in KARTS}


class ViewQuery(ViewFilters):
    """Which views to list, in which order, and for how many of them the grid's cards, by default for all."""

    sort: Literal[*listing.SORT_KEYS] = "name"
    limit: int | None = Field(None, ge=0)


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
        return {
            "models": models.state,
            "views": len(views.in_split(split)),
            "checked": len(models.answers.get(split, {})),
            "is_checking": models.checked_split == split,
        }

    @app.get("/api/views/{split}")
    def get_views(split: str, query: Annotated[ViewQuery, Query()]) -> dict:
        in_split, answers = views.in_split(split), dict(models.answers.get(split, {}))
        filters = ViewFilters(**query.model_dump())
        keys, facets = listing.list_views(in_split, answers, filters, query.sort)
        cards = [listing.card(in_split[key], answers.get(key)) for key in keys[: query.limit]]
        return {"keys": keys, "cards": cards, "total": len(in_split), "facets": facets}

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
        view = views.find(split, key)
        answers = [asdict(answer) for answer in models.answer_all(split, view)]
        return {"answers": answers, "is_unfamiliar": models.is_unfamiliar(view) if view.scene is None else None}

    @app.post("/api/ask")
    def ask(split: Name, key: Name, question: Annotated[Line, Body()]) -> dict:
        answer = models.ask(views.find(split, key), question)
        return asdict(answer) | {"is_trained": question in TRAINED_QUESTIONS}

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
