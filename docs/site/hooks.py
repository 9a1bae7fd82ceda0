"""Hooks of MkDocs: pages that are made from other files of the repository, and checked links.

- A link of a page to a file outside docs/ leads to a copy of that file in the site.
- README.md is the first page. The notebooks of examples/ are pages, with what they printed and
  drew.
- ``api.md`` lists the public names, ``cli.md`` the commands.
- Once the site is made, every link and every anchor of its HTML has to exist.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\(|src=\"|href=\")(?![a-z]+:|[#/])([^)\s\"#]+)")
FENCE = re.compile(r"^(```.*?^```|~~~~.*?^~~~~)", re.M | re.S)
CODE = {".py": "python", ".c": "c", ".h": "c", ".toml": "toml", ".js": "javascript", ".sh": "bash"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/, and whatever they and the others link to."""
    made = {
        "api.md": reference.api(),
        "cli.md": reference.commands(),
        "index.md": (ROOT / "README.md").read_text("utf-8"),
    }
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = _notebook(path, files, config)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    waiting = [f for f in files if f.src_uri.endswith(".md") and f.inclusion.is_included()]
    while waiting:
        page = waiting.pop()
        for path in _linked(page.content_string, _source(page.src_uri)):
            uri = _uri(path)
            if files.get_file_from_path(uri) is None:
                added = _copied(path, uri, config)
                files.append(added)
                waiting += [added] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links where the files are in the site."""
    source = _source(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match) -> str:
        path = _target(found[2], source)
        if path is None:
            return found[0]
        uri = _uri(path)
        if found[1] != "](":  # HTML, which MkDocs takes as it is
            uri = files.get_file_from_path(uri).dest_uri
        return found[1] + posixpath.relpath(uri, here)

    return _outside_code(markdown, lambda text: LINK.sub(moved, text))


def on_post_build(config: MkDocsConfig) -> None:
    """Check every link and anchor of the pages as they are."""
    site = Path(config.site_dir)
    pages = {path: _Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    missing = []
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            if path.name == "404.html" or re.match(r"[a-z]+:|//", link):
                continue
            known = target in pages and unquote(anchor) in pages[target].ids
            if not target.exists() or (anchor and not known):
                missing.append(f"{path.relative_to(site)}: {link}")
    if missing:
        raise PluginError("Links that lead nowhere:\n" + "\n".join(sorted(set(missing))))


class _Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = {"__skip", ""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def _source(uri: str) -> Path:
    """The file of the repository that a page of the site was made of."""
    if uri == "index.md":
        return ROOT / "README.md"
    if uri.startswith("notebooks/"):
        return ROOT / "examples" / f"{Path(uri).stem}.ipynb"
    if uri.startswith("repository/"):
        path = ROOT / uri.removeprefix("repository/")
        return path if path.exists() else path.with_suffix("")
    return ROOT / "docs" / uri


def _uri(path: Path) -> str:
    """Where a file of the repository is in the site."""
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if path.suffix == ".ipynb":
        return f"notebooks/{path.stem}.md"
    if path.is_relative_to(ROOT / "docs") and path.suffix not in CODE and "training/" not in name:
        return name.removeprefix("docs/")
    return f"repository/{name}" + (".md" if path.suffix in CODE else "")


def _copied(path: Path, uri: str, config: MkDocsConfig) -> File:
    """A file outside docs/ for the site: code as a page, all else as it is."""
    if path.suffix in CODE:
        name = path.relative_to(ROOT).as_posix()
        text = f"{HIDDEN}# {name}\n\n~~~~{CODE[path.suffix]}\n{path.read_text('utf-8')}~~~~\n"
        return File.generated(config, uri, content=text)
    if path.suffix == ".md":
        return File.generated(config, uri, content=HIDDEN + path.read_text("utf-8"))
    return File.generated(config, uri, abs_src_path=str(path))


def _target(link: str, source: Path) -> Path | None:
    """The file that a link of ``source`` means; None for pages that exist in the site alone."""
    path = (source.parent / unquote(link)).resolve()
    if path.is_dir():
        path /= "README.md"
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _linked(text: str, source: Path) -> list[Path]:
    found: list[Path | None] = []
    _outside_code(
        text, lambda part: found.extend(_target(m[2], source) for m in LINK.finditer(part))
    )
    return [path for path in found if path is not None]


def _outside_code(text: str, change) -> str:
    parts = FENCE.split(text)
    return "".join(part if i % 2 else change(part) or "" for i, part in enumerate(parts))


def _notebook(path: Path, files: Files, config: MkDocsConfig) -> str:
    """A notebook as Markdown; its pictures become files of the site."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for number, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"notebooks/{path.stem}-{len(parts)}-{number}.png"
                picture = base64.b64decode("".join(data["image/png"]))
                files.append(File.generated(config, name, content=picture))
                parts.append(f"![]({posixpath.basename(name)})")
                continue
            text = "".join(output.get("text", data.get("text/plain", "")))
            parts.append(f'<div class="output" markdown>\n```text\n{text.rstrip()}\n```\n</div>')
    name = path.relative_to(ROOT).as_posix()
    end = f"\n\n---\n\nThis page is the notebook `{name}` of the repository, as it ran.\n"
    return "\n\n".join(parts) + end
