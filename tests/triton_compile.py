"""`test_linf_triton` runs this: every program compiled for compute capability 9.0, without a GPU, and its code read."""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lipcert.linf.kernels import triton_device as programs

TILE = {"RM": 1, "RN": 2, "TM": 8, "TN": 16}
FLOAT = ("lower", "upper", "x", "w", "y", "grad", "inverse", "dx", "dw")


def code(program: triton.JITFunction, real: str = "fp32", types: dict | None = None, **constants: object) -> str:
    """The PTX of one program: tensors are `real`, counts int32, those of `types` as they say."""
    known = dict.fromkeys(FLOAT, f"*{real}") | {"starts": "*i32", "scale": "*fp64", "p_high": "fp32", "p_low": "fp32"}
    known |= types or {}
    names = program.arg_names
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(program, signature, places)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]


def main() -> None:
    compiled = 0
    for kind, save, even in ((0, False, True), (0, True, False), (1, False, True), (2, False, False)):
        ptx = code(programs.largest_kernel, KIND=kind, SAVE=save, EVEN=even, **TILE)
        compiled += 1
        # bit for bit what torch computes: subnormal numbers kept, nothing fused, NaN passed on
        assert "sub.f32" in ptx or "sub.rn.f32" in ptx, ptx
        assert "max.NaN.f32" in ptx and not re.search(r"\bmax\.f32", ptx), ptx
        assert ".ftz" not in ptx and "fma" not in ptx and "mul.f32" not in ptx, ptx
    for kind, squarings, fast, real in ((0, 3, True, "fp32"), (3, -1, True, "fp32"), (0, -1, False, "fp64")):
        constants = {"KIND": kind, "SQUARINGS": squarings, "FAST": fast, "TINY": 2.0**-126, "EVEN": True}
        ptx = code(programs.power_kernel, real, **constants, **TILE)
        compiled += 1
        assert ("lg2.approx.ftz.f32" in ptx) == (squarings < 0 and fast), ptx
    for squarings, fast, real in ((0, True, "fp32"), (3, True, "fp32"), (-1, True, "fp32"), (-2, False, "fp64")):
        code(programs.slopes_kernel, real, SQUARINGS=squarings, FAST=fast, RO=4, T=128)
        compiled += 1
    for rest, real in ((False, "fp32"), (True, "fp32"), (False, "fp64")):
        types = {} if rest else {"dx": "*i64", "dw": "*i64"}
        ptx = code(programs.scatter_kernel, real, types, REST=rest, T=128)
        compiled += 1
        assert (".u64" if not rest else f".f{real[2:]}") in "".join(re.findall(r"atom\S*|red\S*", ptx)), ptx
    print(f"{compiled} programs compiled")


if __name__ == "__main__":
    main()
