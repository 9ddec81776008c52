"""Proven enclosures of layer norms, rounding included: what certificates rest on.

`enclosure` is the way in; `operators` reads a layer exactly, `verified` proves norms of matrices (`defect` those of
orthogonal ones), `torus` reduces convolutions to matrices, `banded` proves them as they are, `integers` does without
floating point, `magnitude` bounds |A|, `rounding` states what is trusted, `search` finds candidates nothing trusts.
"""

from lipcert.bounds.enclosure import Enclosure, norm_bound

__all__ = ["Enclosure", "norm_bound"]
