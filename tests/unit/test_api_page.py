"""The page's files, as the server hands them out."""

import re
from pathlib import Path

import httpx
import pytest

import app
from app.api.front import Front
from app.api.page import PAGE
from app.api.server import ApiOptions
from tests.unit.scripted_engine import listening, serve

FOLDER = Path(app.__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("path", PAGE)
async def test_every_file_has_its_type_and_the_policy(path):
    """Each is sent as what it is, revalidated every time, and allows nothing that is not this server's own."""
    async with serve().client() as client:
        response = await client.get(path)
    file = FOLDER / PAGE[path]
    assert (response.status_code, response.content) == (200, file.read_bytes())
    assert response.headers["content-type"].split(";")[0] == TYPES[file.suffix]
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert {directive.split()[1] for directive in policy[1:]} == {"'self'", "'none'"}


async def test_head_is_get_without_the_body():
    """HEAD has the headers of GET and no byte after them."""
    async with listening(serve().app) as url, httpx.AsyncClient(base_url=url) as client:
        whole = await client.get("/")
        head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}


async def test_other_methods_are_the_apis_to_refuse():
    """POST to the page is what any unknown route is: a 405 or 404 in OpenAI's envelope."""
    async with serve().client() as client:
        response = await client.post("/", content=b"")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_the_page_needs_no_key_and_no_api():
    """It is there for anyone before the API is imported, and what asks the API is refused without a key as ever."""
    served = serve(options=ApiOptions(api_keys=("key",)))
    bare = Front(served.service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=bare), base_url="http://test") as client:
        assert (await client.get("/")).status_code == 200
    async with served.client() as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


def test_all_files_are_served_and_found():
    """Nothing lies in the folder that has no path, and nothing is asked for that is not there."""
    assert sorted(PAGE.values()) == sorted(file.name for file in FOLDER.iterdir())
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    scripts = [file.read_text(encoding="utf-8") for file in FOLDER.glob("*.js")]
    asked = re.findall(r'(?:href|src)="page/([^"]+)"', page)
    imported = [
        name for script in scripts for name in re.findall(r'^import .* from "\./([^"]+)";', script, re.MULTILINE)
    ]
    assert {*asked, *imported, "index.html"} == set(PAGE.values())
