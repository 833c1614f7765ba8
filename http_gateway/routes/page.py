"""The page at / and its files, and /docs. Browsers load nothing from elsewhere."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"
_SWAGGER = Path(fastapi_offline.__file__).parent / "static"

router = APIRouter(include_in_schema=False)


@router.get("/", response_model=None)
async def index() -> FileResponse:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers={"cache-control": "no-cache"})


@router.get("/docs", response_model=None)
async def docs(request: Request) -> HTMLResponse:
    """The description of the API, to try it out."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="fiddler's API",
        swagger_js_url="/docs/files/swagger-ui-bundle.js",
        swagger_css_url="/docs/files/swagger-ui.css",
        swagger_favicon_url="/page/icon.svg",
    )


def mount(app: FastAPI) -> None:
    """Adds the page and its files to an application."""
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=FOLDER))
    app.mount("/docs/files", StaticFiles(directory=_SWAGGER))
