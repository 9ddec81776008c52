"""Tiny-ImageNet from generated folders in its layout: the real set is not needed and not tested. Truth: Pillow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from pictures import WNIDS, picture, save, tiny_folder  # noqa: E402

from lipcert.data import DATASETS, load_dataset, tiny_imagenet  # noqa: E402


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder of three classes, registered under the real name with its own counts."""
    facts = replace(
        DATASETS["tiny_imagenet"], read=tiny_imagenet.Reader(classes=3, train=4, test=2),
        classes=3, train=12, validation=3, test=6,
    )  # fmt: skip
    monkeypatch.setitem(DATASETS, "tiny_imagenet", facts)
    monkeypatch.setenv("LIPCERT_DATA", str(tmp_path))
    return tiny_folder(tmp_path)


def read_CHW(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_tiny_imagenet_holds_every_file_under_its_class(tiny):
    data = load_dataset("tiny_imagenet")
    assert (len(data.train), len(data.validation), len(data.test), data.shape) == (12, 0, 6, (3, 64, 64))
    assert data.class_names == tuple(f"thing {k}, article" for k in (1, 2, 3)) and not data.verified
    expected = [
        read_CHW(tiny / "train" / wnid / "images" / f"{wnid}_{i}.JPEG") for wnid in sorted(WNIDS) for i in range(4)
    ]
    assert np.array_equal(data.train.images_NCHW.numpy(), np.stack(expected))
    assert data.train.labels_N.tolist() == [k for k in range(3) for _ in range(4)]
    label_of = dict(line.split("\t")[:2] for line in (tiny / "val/val_annotations.txt").read_text().splitlines())
    for image, label, name in zip(data.test.images_NCHW, data.test.labels_N, sorted(label_of), strict=True):
        assert np.array_equal(image.numpy(), read_CHW(tiny / "val/images" / name))
        assert sorted(WNIDS)[label] == label_of[name]
    grey = data.train.images_NCHW[9]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    cut = load_dataset("tiny_imagenet", validation=True)
    assert (len(cut.train), len(cut.validation)) == (9, 3) and cut.sha256 != data.sha256


def test_tiny_imagenet_subset_is_part_of_the_whole(tiny):
    whole, part = load_dataset("tiny_imagenet"), load_dataset("tiny_imagenet", classes=2)
    kept = [whole.class_names.index(name) for name in part.class_names]
    mask = torch.isin(whole.train.labels_N, torch.tensor(kept))
    assert torch.equal(part.train.images_NCHW, whole.train.images_NCHW[mask]) and len(part.test) == 4


def test_cache_is_used_and_gives_the_same_bytes(tiny, monkeypatch):
    first = load_dataset("tiny_imagenet")
    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet, "open_rgb", None)
        again = load_dataset("tiny_imagenet")
    assert again.sha256 == first.sha256
    assert torch.equal(first.train.images_NCHW, again.train.images_NCHW)


@pytest.mark.parametrize("what", ["changed image", "moved file", "damaged cache", "cut cache", "other decoder"])
def test_stale_cache_is_made_again(tiny, what, monkeypatch):
    first = load_dataset("tiny_imagenet")
    name = tiny / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_2.JPEG"
    cache = tiny.with_name(tiny_imagenet.CACHE)
    if what == "changed image":
        save(name, picture(77, 64, 64))
    elif what == "moved file":
        name.rename(name.with_name("z.JPEG"))
    elif what == "damaged cache":
        whole = bytearray((cache / "train.npy").read_bytes())
        whole[-1] ^= 1
        (cache / "train.npy").write_bytes(whole)
    elif what == "cut cache":
        (cache / "test.npy").write_bytes((cache / "test.npy").read_bytes()[:-9])
    else:
        monkeypatch.setattr(tiny_imagenet, "decoder", lambda: "another")
    decoded = []
    original = tiny_imagenet.open_rgb
    monkeypatch.setattr(tiny_imagenet, "open_rgb", lambda path: decoded.append(path) or original(path))
    assert (load_dataset("tiny_imagenet").sha256 == first.sha256) == (what not in ("changed image", "moved file"))
    assert len(decoded) == 18
    load_dataset("tiny_imagenet")
    assert len(decoded) == 18


def test_a_cache_that_cannot_be_written_costs_only_the_decoding(tiny, capsys, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    assert len(load_dataset("tiny_imagenet").train) == 12
    assert "no cache written (no space left)" in capsys.readouterr().err
    assert [path.name for path in tiny.parent.iterdir()] == [tiny.name]


def _break(folder, what):
    wnid = WNIDS[0]
    images = folder / "train" / wnid / "images"
    one = images / f"{wnid}_0.JPEG"
    table = folder / "val/val_annotations.txt"
    if what == "no folder":
        folder.rename(folder.with_name("elsewhere"))
    elif what == "corrupt":
        one.write_bytes(one.read_bytes()[:400])
    elif what == "not an image":
        one.write_text("hello")
    elif what == "png":
        save(one, picture(0, 64, 64), format="PNG")
    elif what == "size":
        save(one, picture(0, 64, 48))
    elif what == "count":
        one.unlink()
    elif what == "class":
        (folder / "train" / wnid).rename(folder / "train" / "n5")
    elif what == "wnids":
        (folder / "wnids.txt").write_text(f"{WNIDS[0]}\n{WNIDS[1]}\n{WNIDS[1]}\n")
    elif what == "words":
        (folder / "words.txt").write_text(f"{WNIDS[0]}\tthing\n")
    elif what == "no table":
        table.unlink()
    elif what == "table":
        table.write_text(table.read_text().replace(wnid, WNIDS[1], 1))
    elif what == "foreign":
        table.write_text(table.read_text().replace(wnid, "n7", 1))
    else:
        (folder / "val/images/val_0.JPEG").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "tiny_imagenet: no tiny-imagenet-200/wnids.txt in .*LIPCERT_DATA"),
        ("corrupt", r"n00000003_0.JPEG: must be a whole image in the format JPEG .*[Tt]runcated"),
        ("not an image", r"n00000003_0.JPEG: must be a whole image in the format JPEG"),
        ("png", r"n00000003_0.JPEG: must be a whole image in the format JPEG"),
        ("size", r"n00000003_0.JPEG: 64x48 pixels: must be 64x64"),
        ("count", r"train/n00000003/images holds 3 files \*.JPEG: must be 4; unpack"),
        ("class", r"class 'n00000003' is in wnids.txt only; unpack"),
        ("wnids", r"wnids.txt lists 3 classes, 2 of them different: must be 3; unpack"),
        ("words", r"words.txt has no name for n00000001; unpack"),
        ("no table", r"no val/val_annotations.txt in .*unpack"),
        ("table", r"val_annotations.txt names 3 images of n00000001: must be 2 of every class; unpack"),
        ("foreign", r"val_annotations.txt has the line .*'n7'.*must be a file and a class of wnids.txt.*unpack"),
        ("no image", r"val_annotations.txt names 6 files, 6 of them different, and val/images holds others"),
    ],
)
def test_damaged_tiny_imagenet_is_refused_by_name(tiny, what, message):
    _break(tiny, what)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_dataset("tiny_imagenet")
    assert not tiny.with_name(tiny_imagenet.CACHE).exists()
