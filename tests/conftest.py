"""What every test gets: one thread, results in a temporary folder, downloaded sets only where they are."""

import functools
import os

import pytest
import torch

from lipcert import checker
from lipcert.paths import data_dir

# torchvision's folders inside LIPCERT_DATA.
_FOLDERS = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@pytest.fixture(autouse=True)
def results(tmp_path_factory, monkeypatch):
    """LIPCERT_RESULTS and LIPCERT_CACHE in a temporary folder, so that no test writes elsewhere; returns the folder."""
    folder = tmp_path_factory.mktemp("results")
    monkeypatch.setenv("LIPCERT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("LIPCERT_RESULTS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_command():
    """What a benchmark run inside a test says of its command does not outlive the test."""
    before = os.environ.pop("LIPCERT_COMMAND", None)
    yield
    os.environ.pop("LIPCERT_COMMAND", None)
    if before is not None:
        os.environ["LIPCERT_COMMAND"] = before


@pytest.fixture(autouse=True)
def one_thread():
    """The same sums in the same order whatever else runs on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits_once():
    """The checker reads the digits from disk once: every check would take a tenth of a second more."""
    before, checker.read_images = checker.read_images, functools.cache(checker.read_images)
    yield
    checker.read_images = before


def pytest_runtest_setup(item):
    """`@pytest.mark.data("cifar10")`: skipped, with the reason, where the set was not downloaded."""
    for marker in item.iter_markers("data"):
        for name in marker.args:
            folder = data_dir() / _FOLDERS[name]
            if not folder.exists():
                pytest.skip(f"{name} is not in {data_dir()}: download it or set LIPCERT_DATA")
