"""How CUDA computes float32 products: as float32, or on tensor cores with ten bits of each factor (TF32)."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tensor_float(on: bool, device: torch.device) -> Iterator[None]:
    """TF32 in float32 convolutions and matrix products on or off, whatever was set before; restored afterwards.

    It may be on in a network's forward pass and its gradient alone. Norms, orthogonalisation and certification need
    what float32 promises, and torch lets convolutions use TF32 unless told otherwise. Nothing changes off CUDA.
    """
    if device.type != "cuda":
        yield
        return
    # The older of torch's two interfaces: both follow its setters, while it refuses to be read after some of the newer.
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        _allow("high" if on else "highest", on)
        yield
    finally:
        _allow(*before)


def _allow(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
