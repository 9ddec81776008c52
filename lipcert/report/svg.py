"""SVG that lives in the page: text takes the page's colour and font, so light and dark both work offline.

Every figure comes with alternative text and with the numbers it was drawn from as CSV. matplotlib is imported when a
figure is drawn. Colours are Okabe-Ito's, each also told apart by marker or dash.
"""

import base64
import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 5.2  # inches: text stays readable when a phone shrinks the figure
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK = "#010101"  # stands for the page's text colour and is replaced by `currentColor`
FAINT = "#808080"
_RC = {
    "svg.fonttype": "none", "svg.hashsalt": "lipcert", "font.family": "sans-serif", "font.size": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """An SVG with a name, alternative text and the numbers behind it (CSV text)."""

    name: str
    svg: str
    alt: str
    csv: str

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.csv.encode()).decode()
        alt = html.escape(self.alt, quote=True)
        svg = self.svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" class="lipcert" ', 1)
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{data}">the numbers in this figure (CSV)</a>'
        return f'<figure class="lipcert" id="figure-{self.name}">{svg}<figcaption>{link}</figcaption></figure>'

    def __repr__(self) -> str:
        return f"<figure {self.name}: {self.alt}>"

    def save(self, path: str | Path) -> Path:
        """Write a file that follows the reader's colour scheme on its own, for a README."""
        style = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
        title = f"<title>{html.escape(self.alt)}</title>"
        Path(path).write_text(re.sub(r"(<svg [^>]*>)", lambda m: m[1] + title + style, self.svg, count=1))
        return Path(path)


def canvas(width: float, height: float) -> "tuple[Canvas, Axes]":
    """A figure of that many inches and its axes, in the style of the book."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        figure = Canvas(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def finish(name: str, figure: "Canvas", alt: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Figure:
    """The drawn figure as text: no size in points, no fonts, no colour of its own for text, ids of its own."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    # A style element would reach the whole page the figure stands in.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin:round" ', 1)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"font: ([^'\"]*?)'[^']*'[^;\"]*", r"font: \1sans-serif", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{name}-", svg)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return Figure(name, svg, alt, out.getvalue())
