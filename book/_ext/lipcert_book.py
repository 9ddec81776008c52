"""Three things the book needs: pages that are never stale, mathematics without a network, and no remote scripts."""

import importlib.util
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.fileutil import copy_asset

# The renderer with all of TeX that it needs, and its fonts: 1.6 of the package's 15 MB. name -> folder it goes to
_MATHJAX = {"tex-chtml.js": "", "output/chtml/fonts/woff-v2": "output/chtml/fonts/woff-v2"}


def every_page(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """All pages are outdated: their text does not change when the records they are computed from do."""
    return sorted(env.found_docs)


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages."""
    if error is None and app.builder.format == "html":
        package = importlib.util.find_spec("sphinx-mathjax-offline")
        source = Path(package.origin).parent / "static" / "mathjax"
        for name, folder in _MATHJAX.items():
            copy_asset(source / name, Path(app.outdir) / "_static" / "mathjax" / folder)


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Leave out the scripts of live code cells: they would load from a remote host and are declared twice."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {script.attributes.get('body', '')}".lower()
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("env-get-outdated", every_page)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
