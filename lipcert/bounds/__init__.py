"""Proven enclosures of layer norms, rounding included: what certificates rest on.

`enclosure` is the way in; `operators` reads a layer exactly, `verified` proves norms of matrices, `torus` reduces
convolutions to matrices, `rounding` states what is trusted, `search` finds candidates that nothing trusts.
"""

from lipcert.bounds.enclosure import Enclosure, norm_bound

__all__ = ["Enclosure", "norm_bound"]
