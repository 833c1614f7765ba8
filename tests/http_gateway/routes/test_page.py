"""The page's files are served whole, and name nothing outside. tests/interop drives it in a browser."""

import re

import pytest
from starlette.testclient import TestClient

from http_gateway.routes.page import FOLDER

FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_and_loads_nothing_from_elsewhere(http: TestClient, name: str) -> None:
    answer = http.get(f"/page/{name}")
    assert answer.status_code == 200
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://\w[^\s\"')]*", text) == []


def test_what_the_page_names_exists(http: TestClient) -> None:
    page = http.get("/").text
    named = re.findall(r'(?:src|href)="(/[^"#]*)"', page)
    assert len(named) > 4
    for path in named:
        assert http.get(path).status_code == 200, path
    ids = set(re.findall(r'\bid="([\w-]+)"', page))
    scripts = "".join((FOLDER / name).read_text() for name in FILES if name.endswith(".js"))
    wanted = set(re.findall(r'getElementById\("([\w-]+)"\)|\btext\("([\w-]+)"', scripts))
    assert {one or other for one, other in wanted} <= ids
    modules = set(re.findall(r'from "\./([\w.]+)"', scripts))
    assert modules <= set(FILES)


def test_the_description_of_the_api_comes_with_its_files(http: TestClient) -> None:
    page = http.get("/docs").text
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        assert http.get(path).status_code == 200, path
    assert "https://" not in page
    description = http.get("/openapi.json").json()
    paths = description["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health"} <= paths.keys()
    for path, form in (("/v1/chat/completions", "ChatRequest"), ("/v1/completions", "CompletionRequest")):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{form}"}
        assert paths[path]["post"]["security"] == [{"HTTPBearer": []}]
