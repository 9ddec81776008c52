"""Small folders of image files in the layouts of the real sets."""

import numpy as np
from PIL import Image

WNIDS = ("n00000003", "n00000001", "n00000002")  # not in order, as in the real lists


def picture(seed, width, height, grey=False):
    """A smooth picture with some noise, so that JPEG, resizing and cropping all matter."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4) if grey else (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format=options.pop("format", "JPEG"), **options)


def tiny_folder(root, train=4, test=2, side=64):
    """`tiny-imagenet-200/` with three classes; one image is grey."""
    folder = root / "tiny-imagenet-200"
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("".join(f"{w}\tthing {w[-1]}, article\n" for w in (*WNIDS, "n99999999")))
    rows = []
    for k, wnid in enumerate(WNIDS):
        for i in range(train):
            image = picture(100 * k + i, side, side, grey=(k, i) == (0, 1))
            save(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", image)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes")
        for i in range(test):
            rows.append((f"val_{3 * i + k}.JPEG", wnid))
            save(folder / "val" / "images" / rows[-1][0], picture(1000 + 10 * k + i, side, side))
    (folder / "val" / "val_annotations.txt").write_text("".join(f"{n}\t{w}\t0\t0\t9\t9\n" for n, w in rows))
    return folder


SIZES = ((300, 200), (90, 130), (256, 256), (225, 500), (61, 60))


def imagenet_folder(root, counts=(5, 4, 3), test=2):
    """`imagenet/` with three classes of different sizes; images of all shapes, one grey, one PNG named as a JPEG."""
    folder = root / "imagenet"
    for k, (wnid, count) in enumerate(zip(sorted(WNIDS), counts, strict=True)):
        for split, number in (("train", count), ("val", test)):
            for i in range(number):
                image = picture(k * 100 + i + (split == "val") * 1000, *SIZES[(i + k) % 5], grey=(k, i) == (1, 0))
                kind = "PNG" if (split, k, i) == ("train", 2, 1) else "JPEG"
                save(folder / split / wnid / f"{split}_{k}_{i}.JPEG", image, format=kind)
    return folder
