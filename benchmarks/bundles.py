"""Goal S5 of `benchmarks.soundness`: shipped certificates, changed bytes and forged claims before the checker."""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lipcert.paths import ROOT, results_dir
from lipcert.report.checks import measuring

CHECKER = ROOT / "lipcert" / "checker.py"


def bundles(changes: int = 1000) -> None:
    """S5: shipped certificates checked without torch, bytes changed at random, claims forged."""
    sys.path.insert(0, str(ROOT / "tests"))
    from forge import every_kind, honest, verdict
    from forgeries import forgeries

    target = "agrees on every image; 1,000 changed bytes and 200 forgeries rejected; 575 lines"
    with measuring("S5", "independent checker", target) as found, tempfile.TemporaryDirectory() as temporary:
        rows, wrong, images = [("bundle", "images", "exit code", "seconds")], 0, 0
        for folder in sorted((results_dir() / "certificates").iterdir()):
            count = json.loads((folder / "certificate.json").read_text())["counts"]["images"]
            start = time.perf_counter()
            code = subprocess.run([sys.executable, CHECKER, folder], capture_output=True).returncode
            rows.append((folder.name, f"{count:,}", str(code), f"{time.perf_counter() - start:.0f}"))
            wrong, images = wrong + (code != 0), images + count
        here = Path(temporary)
        bundle = honest(every_kind())
        folder, rng = bundle.write(here / "honest"), random.Random(1)
        spared = 0
        for _ in range(changes):
            file = rng.choice(sorted(folder.iterdir()))
            blob, place = file.read_bytes(), rng.randrange(file.stat().st_size)
            file.write_bytes(blob[:place] + bytes([blob[place] ^ rng.randrange(1, 256)]) + blob[place + 1 :])
            spared += verdict(folder)[0] != 1
            file.write_bytes(blob)
        believed, forged = [], 0
        for name, change in forgeries():
            if verdict(bundle.changed(change).write(here / str(forged)))[0] != 1:
                believed.append(name)
            forged += 1
        lines = len(CHECKER.read_text().splitlines())
        met = not (wrong or spared or believed) and lines <= 575 and verdict(folder)[0] == 0
        found |= {
            "measured": f"{len(rows) - 1} shipped bundles with {images:,} images checked in processes of their own, "
            f"{wrong} disagreements; {changes - spared:,} of {changes:,} changed bytes and {forged - len(believed)} of "
            f"{forged} forgeries with recomputed checksums rejected; {lines} lines",
            "verdict": "met" if met else "fell short",
            "numbers": {"bundles": len(rows) - 1, "images": images, "forgeries": forged, "believed": len(believed)},
            "rows": tuple(rows),
        }
