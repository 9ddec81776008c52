"""What attacks cost and how close they get, end to end: `python benchmarks/attacks.py digits-liresnet-L6W32`.

Writes results/local/attacks/NAME.json. With no `--strong`, every attack takes all images: minutes for the digits, so
name a part of them for anything larger.
"""

import argparse

from lipcert.attack import ATTACKS, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a shipped network, id of one of your runs, or path of a .safetensors file")
    parser.add_argument("--count", type=int, default=0, help="test images; 0: all")
    parser.add_argument("--strong", type=int, default=0, help="images for attacks other than `inside`; 0: all")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS, help="default: all")
    parser.add_argument("--no-box", action="store_true", help="let points leave [0, 1]")
    options = parser.parse_args()
    run(options.model, options.count, options.strong, options.attacks, box=not options.no_box)


if __name__ == "__main__":
    main()
