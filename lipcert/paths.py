"""Absolute places: the project root, results, data. Nothing in lipcert depends on the working directory."""

import os
from pathlib import Path


def _root() -> Path:
    """The project folder when lipcert runs from a checkout (an editable install), else the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


ROOT = _root()
RESULTS = ROOT / "results"


def results_dir() -> Path:
    """Where published runs live; `LIPCERT_RESULTS` overrides (used by tests and read-only checkouts)."""
    return Path(os.environ.get("LIPCERT_RESULTS", RESULTS)).resolve()


def local_dir() -> Path:
    """Where every run writes first: `results/local`, ignored by git, so that using the project never dirties it."""
    return results_dir() / "local"


def cache_dir() -> Path:
    """Where measurements of this machine are kept: `LIPCERT_CACHE`, else `lipcert/` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lipcert"
    return Path(os.environ.get("LIPCERT_CACHE") or default).expanduser().resolve()


def data_dir() -> Path:
    """Folder of the downloaded data sets: `LIPCERT_DATA`, else `data/` in the project."""
    return Path(os.environ.get("LIPCERT_DATA", ROOT / "data")).expanduser().resolve()
