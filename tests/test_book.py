"""The book built from clean with warnings as errors, and looked at as a reader's browser would."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from made import add_radii, digits, make_record

from lipcert.config import load_config
from lipcert.paths import RESULTS, ROOT
from lipcert.records import write_record
from lipcert.report import scoreboard, tables
from lipcert.report.published import compare

V1 = ROOT / "notebooks/params/published/liresnet-v1-cifar10.yaml"
CURVE = "step,images,seconds,learning_rate,radius_train,loss,train_accuracy,train_vra_estimated,lipschitz_estimate\n"


def test_every_page_of_the_contents_exists_and_training_is_not_among_them():
    contents = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    pages = [contents["root"], *(c["file"] for part in contents["parts"] for c in part["chapters"])]
    for page in pages:
        assert any((ROOT / "book" / f"{page}{suffix}").exists() for suffix in (".md", ".ipynb")), page
    assert not {"notebooks/train", "notebooks/certify"} & set(pages)


def test_bibliography_and_citations_agree():
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text(), re.MULTILINE))
    used = set()
    # Notebooks keep their lines in JSON; formulas and tables cite from where they are computed.
    for page in (
        *(ROOT / "book").glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
        *(ROOT / "lipcert/report").glob("*.py"),
    ):
        used |= {key for keys in re.findall(r"\{cite:p\}`([^`]+)`", page.read_text()) for key in keys.split(",")}
    assert used == known


def test_the_tables_notebook_keeps_to_the_rules():
    notebook = json.loads((ROOT / "notebooks/vra_tables.ipynb").read_text())
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(code) <= 12 and all(len(cell.splitlines()) <= 8 for cell in code)
    assert not any("def " in cell for cell in code) and "assert" in code[-1]
    assert all(
        c["outputs"] == [] for c in notebook["cells"] if "outputs" in c and "keep_output" not in c["metadata"]["tags"]
    )
    # nbval compares a kept output only where the cell says that it ran.
    assert all(c["execution_count"] for c in notebook["cells"] if c.get("outputs"))


class Page(HTMLParser):
    """What a browser would fetch, draw and follow."""

    def __init__(self, path: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video") and "src" in found:
            self.fetched.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev", "search", "index", "author"):
            self.fetched.append(found.get("href", ""))
        if tag == "img" or (tag == "svg" and "lipcert" in found.get("class", "")):
            self.images.append(found)
        if tag == "a":
            self.links.append(found.get("href", ""))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.text))


# Pages that say the same whatever the records hold and take most of the time: `make test` builds them at its end.
_SAME_EVERYWHERE = ("bounds", "rounding", "testing", "your_net")


def source(folder: Path) -> Path:
    """A copy of the book with those pages reduced to their titles."""
    copy = folder / "source"
    if not copy.exists():
        for name in ("book", "notebooks"):
            shutil.copytree(ROOT / name, copy / name, symlinks=True)
        shutil.copyfile(ROOT / "_config.yml", copy / "_config.yml")
        for name in _SAME_EVERYWHERE:
            page = copy / "book" / f"{name}.md"
            page.write_text(next(line for line in page.read_text().splitlines() if line.startswith("# ")) + "\n")
    return copy


def build(folder: Path) -> Path:
    """Build the book from the results in `folder`; returns the folder of the pages."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book/", "-W", "-n", "--keep-going"]
    environment = {**os.environ, "LIPCERT_RESULTS": str(folder), "OMP_NUM_THREADS": "1"}
    # The tour certifies with a shipped network.
    shutil.copytree(RESULTS / "models", folder / "models", dirs_exist_ok=True)
    out = folder / "built"
    done = subprocess.run(
        [*command, "--path-output", str(out)],
        cwd=source(folder),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out / "_build" / "html"


def fill(folder: Path) -> None:
    """One network of the study, one of a paper, and runs of the reader's own: stopped, of smoke size."""
    rows = [(i % 10, i % 10, 0.002 * i, 0.0021 * i) for i in range(200)]
    counts = tuple(sum(r[2] >= k / 255 for r in rows) for k in (36, 72, 108))
    record = add_radii(make_record(digits(), counts, clean=200, train=1437, images=200), folder, rows)
    curve = f"curves/{record.id}.csv"
    (folder / "curves").mkdir()
    (folder / curve).write_text(CURVE + "1,64,0.1,0,0.01,2.3,0.1,0.05,1.5\n2,128,0.2,0.004,0.2,1.2,0.8,0.6,9.5\n")
    training = record.training.model_copy(update={"curve": curve})
    write_record(record.model_copy(update={"training": training}), folder)
    paper = make_record(load_config(V1), (6543, 5000, 100), images=10_000)
    reach = [0.2 * (i < 6543) for i in range(8000)], [0.2 * (i < 6546) for i in range(8000)]
    radii = [(0, 0, reach[0][i], reach[1][i]) if i < 8000 else (0, 1, 0.0, 0.0) for i in range(10_000)]
    paper = paper.model_copy(
        update={"test": paper.test.model_copy(update={"results": paper.test.results[:2]})},
    )
    write_record(add_radii(paper, folder, radii), folder)
    write_record(make_record(digits(seed=1), status="stopped"))
    write_record(make_record(digits(seed=2), epochs=0))


@pytest.mark.slow
@pytest.mark.parametrize("filled", [True, False], ids=["with records", "without any"])
def test_the_book_builds_and_works_offline(results: Path, filled: bool):
    if filled:
        fill(results)
    html = build(results)
    pages = {path.relative_to(html).as_posix(): Page(path) for path in sorted(html.rglob("*.html"))}
    assert {"index.html", "certified.html", "notebooks/vra_tables.html", "liresnet.html", "records.html"} <= set(pages)
    for name, page in pages.items():
        assert not [f for f in page.fetched if re.match(r"(https?:)?//", f)], name
        for image in page.images:
            assert image.get("alt") or image.get("aria-label"), (name, image)
        for link in page.links:
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert ((html / name).parent / target).exists(), (name, link)
    assert (html / "_static/mathjax/tex-chtml.js").exists()
    size = sum(f.stat().st_size for f in (html / "_static/mathjax").rglob("*") if f.is_file())
    assert size < 2_500_000
    words = pages["notebooks/vra_tables.html"].words()
    start = pages["index.html"].words()
    assert re.sub(r"[*`]", "", scoreboard.scoreboard()).partition(":")[0].partition(",")[0] in start
    if not filled:
        assert f"0 of {len(compare([]))} published numbers re-measured" in start and "not run" in words
        return
    count = len(compare([]))
    assert f"1 of {count} published numbers re-measured, 1 at or above the paper, 0 below, {count - 1} not run" in start
    assert "65.43 % (nominal), one run" in words and "+0.33" in words and "reproduced" in words
    study = next(r for r in tables.study_records())
    assert f"{tables.percent(study.vra('36/255'))} nominal" in words
    assert "stopped" in words and "smoke size, no result" in words
    one_image_less(results)
    assert "65.42 % (nominal), one run" in Page(build(results) / "notebooks/vra_tables.html").words()


def one_image_less(folder: Path) -> None:
    """Change a published record and its radii by one image."""
    name = load_config(V1).run_id()
    record, radii = folder / "runs" / f"{name}.json", folder / "radii" / f"{name}.csv"
    record.write_text(record.read_text().replace("6543", "6542"))
    radii.write_text(radii.read_text().replace("6542,0,0,1,0.2,", "6542,0,0,1,0.0,"))
