"""Servers on this machine, for as long as a ``with`` block lasts.

`stac_api` answers searches over a catalogue of `local_catalog` as a STAC API does, page by page.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pystac
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

GEOJSON = "application/geo+json"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI app on a free port of 127.0.0.1; gives its URL.

    For others to reach it, start it as its makers say: ``uvicorn module:app``.
    """
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start: see what it printed")
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def static_files(folder: Path | str) -> Starlette:
    """Files of a folder, with byte ranges, as buckets and web servers serve them."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=folder))])


def stac_api(
    catalog: Path | str, collection: str = "sentinel-2-l2a", page: int = 2
) -> Starlette:
    """Item search of the STAC API over the items of a ``catalog.json``.

    Parameters
    ----------
    catalog : Path or str
        The ``catalog.json``.
    collection : str
        Name of the only collection.
    page : int
        Items in an answer; the rest is behind its ``next`` link.
    """
    items = []
    for item in pystac.Catalog.from_file(str(catalog)).get_items(recursive=True):
        item.make_asset_hrefs_absolute()
        plain = item.to_dict(include_self_link=False, transform_hrefs=False)
        items.append(plain | {"collection": collection, "links": []})

    async def landing(request: Any) -> JSONResponse:
        here = str(request.base_url)
        search = {"rel": "search", "href": f"{here}search", "type": GEOJSON, "method": "POST"}
        return JSONResponse({
            "type": "Catalog", "id": "local", "description": "on this machine",
            "stac_version": "1.0.0",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core",
                           "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "self", "href": here}, {"rel": "root", "href": here}, search],
        })  # fmt: skip

    async def search(request: Any) -> JSONResponse:
        body = await request.json()
        found = [i for i in items if _matches(i, body)]
        start = int(body.get("token", 0))
        answer = {"type": "FeatureCollection", "features": found[start : start + page], "links": []}
        if start + page < len(found):
            answer["links"] = [{
                "rel": "next", "href": f"{request.base_url}search", "method": "POST",
                "body": {**body, "token": str(start + page)}, "type": GEOJSON,
            }]  # fmt: skip
        return JSONResponse(answer, media_type=GEOJSON)

    return Starlette(routes=[Route("/", landing), Route("/search", search, methods=["POST"])])


def _matches(item: dict[str, Any], body: dict[str, Any]) -> bool:
    west, south, east, north = body["bbox"]
    w, s, e, n = item["bbox"]
    start, end = body["datetime"].split("/")
    return (
        item["collection"] in body["collections"]
        and w <= east and e >= west and s <= north and n >= south
        and start <= item["properties"]["datetime"] <= end
    )  # fmt: skip
