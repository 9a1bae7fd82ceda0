"""``tec-zarr view``: a page that decodes a store in the browser, and a server for both.

The page is static. It opens the store that its address names with ``?url=``, else the folder
``store`` beside it.
"""

from __future__ import annotations

import html
import re
import shutil
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

from tec_zarr.errors import UnsupportedArrayError

PAGE = Path(__file__).with_name("page")
STORE = "store"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def export(folder: Path, store: str | None) -> None:
    """Write the page to a new folder, with a copy of a store, for any static host.

    Parameters
    ----------
    folder : Path
        It must not exist, or be empty.
    store : str, optional
        Path of a store that is copied, or URL of one that the page will open.

    Raises
    ------
    UnsupportedArrayError
        The folder is not empty, the page was not built, or there is no such store.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UnsupportedArrayError(f"{folder} is not empty: name a new folder")
    page = _page()
    if store is not None and not _is_url(store):
        shutil.copytree(_local(store), folder / STORE)
    shutil.copytree(page, folder, dirs_exist_ok=True)
    if store is not None and _is_url(store):
        index = folder / "index.html"
        text = index.read_text("utf-8")
        address = html.escape(store.rstrip("/") + "/")
        index.write_text(text.replace(f'data-store="{STORE}/"', f'data-store="{address}"'), "utf-8")


def server(store: str | None, port: int) -> ThreadingHTTPServer:
    """Return a server of the page and of a store on this machine alone, which does not run yet.

    Parameters
    ----------
    store : str, optional
        Path of a store. A URL is read by the browser, not by the server.
    port : int
        0 for one that is free.

    Raises
    ------
    UnsupportedArrayError
        The page was not built, or there is no such store.
    """
    local = None if store is None or _is_url(store) else _local(store)
    handler = partial(_Handler, page=_page(), store=local)
    made = ThreadingHTTPServer(("127.0.0.1", port), handler)
    made.daemon_threads = True
    return made


def address(server: ThreadingHTTPServer, store: str | None) -> str:
    """Return the address of the page on a server, with the URL of a store that is elsewhere."""
    asked = f"?{urlencode({'url': store})}" if store is not None and _is_url(store) else ""
    return f"http://127.0.0.1:{server.server_address[1]}/{asked}"


def _is_url(store: str) -> bool:
    return store.startswith(("http://", "https://"))


def _local(store: str) -> Path:
    path = Path(store)
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise UnsupportedArrayError(f"{path} is not the folder of a Zarr store, nor a URL of one")
    return path


def _page() -> Path:
    if not (PAGE / "index.html").is_file():
        raise UnsupportedArrayError(
            "this installation has no page: wheels hold it, and in a checkout `make readers` "
            "makes it (it needs Node.js)"
        )
    return PAGE


class _Handler(SimpleHTTPRequestHandler):
    """Serves files of the page and, below ``/store/``, of the store; also parts of files."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body go out together: the second of two packets would wait
    disable_nagle_algorithm = True
    extensions_map = {  # noqa: RUF012  # the machine's own table may lack or change them
        ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css",
        ".wasm": "application/wasm", ".json": "application/json", "": "application/octet-stream",
    }  # fmt: skip

    def __init__(self, *args: object, page: Path, store: Path | None) -> None:
        self._roots = (page, store)
        super().__init__(*args)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """Return the file for the path of a request: no part of it leads upwards."""
        parts = [part for part in unquote(urlsplit(path).path).split("/") if part]
        root, store = self._roots
        if store is not None and parts[:1] == [STORE]:
            root, parts = store, parts[1:]
        if any(part in (".", "..") or set(part) & set("\\:\0") for part in parts):
            return str(root / "no such file")
        return str(root.joinpath(*parts))

    def do_GET(self) -> None:
        """Answer with a file or the part of it that is asked for."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the length of a file."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if path == self._roots[0]:
            path /= "index.html"
        try:
            file = path.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            size = file.seek(0, 2)
            part = _part(self.headers.get("Range"), size)
            if part is None:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, stop = part
            whole = "Range" not in self.headers
            self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", self.guess_type(str(path)))
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "no-cache")
            if not whole:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if body:
                file.seek(start)
                self.wfile.write(file.read(stop - start))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """Return where a part starts and stops; None if the file has no such part."""
    if header is None:
        return 0, size
    found = _RANGE.fullmatch(header.strip())
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else None
