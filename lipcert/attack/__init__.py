"""Falsifiers: searches for a perturbation that changes the answer. They can refute a certificate, never support one.

    from lipcert.attack import falsify, lipschitz_lower, rounding_search

    certificates = certify(chain, images_BCHW)
    result = falsify(chain, images_BCHW, certificates, attacks=("inside", "fab"))
    result.violations            # points inside a certified radius that change the answer: there must be none
    result.table()               # how far outside the certified radius the closest point found lies

A success counts only after the network was run on the point once more, in micro-batches as `certify` runs it, and its
distance is rounded up. On an ordinary network attacks stay several certified radii away, so that they would not notice
a certifier that is wrong by such a factor: networks of known radius do (`tests/nets.py`, `razor_edge`).
"""

from lipcert.attack.command import run
from lipcert.attack.falsify import ATTACKS, falsify
from lipcert.attack.fields import AttackResult, Falsification, Violation
from lipcert.attack.linearised import DeepFool, Fab
from lipcert.attack.lipschitz import LipschitzLower, lipschitz_lower
from lipcert.attack.margin import margin_attack, predict
from lipcert.attack.polish import polish
from lipcert.attack.projected import Apgd, Inside, Pgd
from lipcert.attack.rounding import Rounding, rounding_search
from lipcert.attack.target import Found, Target, distance_up, verify

__all__ = [
    "ATTACKS", "Apgd", "AttackResult", "DeepFool", "Fab", "Falsification", "Found", "Inside", "LipschitzLower", "Pgd",
    "Rounding", "Target", "Violation", "distance_up", "falsify", "lipschitz_lower", "margin_attack", "polish",
    "predict", "rounding_search", "run", "verify",
]  # fmt: skip
