"""Two things the book needs from Sphinx: pages that are never stale, and mathematics without a network."""

import importlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

# The renderer with all of TeX it needs, and its fonts: about 1.6 of the package's 15 MB.
_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2")


def every_page(app: Sphinx, env: object, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """All pages are outdated: their text does not change when the records they are computed from do."""
    return sorted(env.found_docs)


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages."""
    if error is None and app.builder.format == "html":
        package = importlib.util.find_spec("sphinx-mathjax-offline")
        source = Path(package.origin).parent / "static" / "mathjax"
        for name in _MATHJAX:
            copy_asset(
                source / name,
                (Path(app.outdir) / "_static" / "mathjax" / name).parent
                if "." in name
                else Path(app.outdir) / "_static" / "mathjax" / name,
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("env-get-outdated", every_page)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
