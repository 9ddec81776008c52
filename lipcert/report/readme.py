"""The computed parts of both READMEs: `lipcert readme` writes them, a test compares.

README.md gets a figure and a table from the published records, results/README.md the tables of every field.
"""

import re
from pathlib import Path

from lipcert.paths import ROOT, results_dir
from lipcert.report import schema
from lipcert.report.figures import vra_figure, vra_legend
from lipcert.report.speed import readme_line
from lipcert.report.tables import study_table, study_words

_BEGIN, _END = "<!-- computed: begin -->", "<!-- computed: end -->"


def block() -> str:
    """The study's table, what it says, and the speed run, Markdown."""
    return f"{_BEGIN}\n{vra_legend()}\n\n{study_table()}\n{study_words()}\n\n{readme_line()}\n{_END}"


def current(path: Path = ROOT / "README.md") -> str:
    """The block as the file holds it.

    Raises:
        ValueError: the file lacks the two marks.
    """
    found = re.search(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", path.read_text(), re.DOTALL)
    if found is None:
        raise ValueError(f"{path}: must hold {_BEGIN} and {_END}")
    return found[0]


def write(path: Path = ROOT / "README.md") -> list[Path]:
    """Refresh the block and `results/figures/vra-radius.svg`; returns what was written."""
    before = current(path)
    path.write_text(path.read_text().replace(before, block()))
    figure = results_dir() / "figures" / "vra-radius.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    vra_figure().save(figure)
    fields = ROOT / "results" / "README.md"
    fields.write_text(fields.read_text().replace(current(fields), f"{_BEGIN}\n\n{schema.readme()}\n{_END}"))
    return [path, figure, fields]
