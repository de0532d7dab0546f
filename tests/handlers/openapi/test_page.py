"""The OpenAPI page, and the document as JSON and YAML."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
YAML_TYPES = ("application/yaml", "application/vnd.oai.openapi+yaml")


async def test_the_page_works_without_internet(client: Any) -> None:
    """The page loads its files from this service alone, and forbids the browser to load others."""
    page = await client.get("/schema", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    files = re.findall(r'(?:href|src|data-url)="(/[^"]+)"', page.text)
    assert len(files) == 5  # two of them the document, as JSON, and one as YAML
    for file in files:
        answer = await client.get(file)
        assert answer.status_code == 200
        assert len(answer.content) > 10_000


async def test_the_page_below_a_prefix(make_app: Any, exchange: Any) -> None:
    """Behind a proxy with a path prefix, the page loads its files below the prefix."""
    app = make_app()

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": "/events", "path": "/events/schema"}, receive, send)

    answer = await exchange(mounted, "/schema", [b""], {}, method="GET")

    assert b'src="/events/schema/assets/swagger-ui-bundle.js"' in answer.body


@pytest.mark.parametrize("accept", ["*/*", "text/html", "image/png", "", ";;,/,", "text/html;q=x"])
async def test_the_page_is_the_first_choice(client: Any, accept: str) -> None:
    """GET /schema answers the page unless the client prefers JSON."""
    answer = await client.get("/schema", headers={"accept": accept})

    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/schema", "/schema/", "/schema/openapi.json"])
async def test_the_document_as_json(client: Any, path: str) -> None:
    """GET /schema answers the document to a client that prefers JSON."""
    answer = await client.get(path, headers={"accept": "application/json"})

    assert "json" in answer.headers["content-type"]
    assert answer.json()["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("path", "accept"),
    [("/schema", "application/yaml"), ("/schema", "application/vnd.oai.openapi+yaml"), ("/schema/openapi.yaml", "*/*")],
)
async def test_the_document_as_yaml(client: Any, path: str, accept: str) -> None:
    """The document is also available as plain YAML, with the same content as the JSON."""
    answer = await client.get(path, headers={"accept": accept})

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/yaml" if accept == "*/*" else accept)
    assert "!!" not in answer.text
    assert not re.search(r": [&*]id\d", answer.text)
    assert yaml.safe_load(answer.text) == (await client.get("/schema/openapi.json")).json()


async def test_the_document_is_rendered_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any client may ask for the document, and rendering it takes longer than a request may hold the event loop."""
    first = [await client.get("/schema", headers={"accept": accept}) for accept in ("application/json", *YAML_TYPES)]

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(yaml, "dump", not_again)
    monkeypatch.setattr("handlers.openapi.page.complete", not_again)
    paths = ("/schema/openapi.json", "/schema/openapi.yaml", "/schema/openapi.yml")
    again = [(await client.get(path)).content for path in paths]
    again += [(await client.get("/schema", headers={"accept": "application/json"})).content]
    assert set(again) == {answer.content for answer in first}


async def test_a_long_accept_header_is_not_read(client: Any) -> None:
    """Litestar needs up to 4 µs for each byte of an Accept header; one that no client sends counts as absent."""
    for commas, media_type in ((9, "application/json"), (1024, "text/html")):
        answer = await client.get("/schema", headers={"accept": "application/json" + "," * commas})
        assert answer.headers["content-type"].startswith(media_type)


def test_the_files_of_the_page_are_installed() -> None:
    """The files of the page and their licenses are part of the installed package."""
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "handlers" / "openapi"

    files = {str(path.relative_to(package)) for path in package.glob("swagger_ui/*")}
    assert {"swagger_ui/LICENSE", "swagger_ui/NOTICE", "swagger_ui/swagger-ui-bundle.js.LICENSE.txt"} < files
    assert all(any(fnmatch(file, pattern) for pattern in package_data["handlers.openapi"]) for file in files)
