"""A plain chain as a flat program: its layers in the order in which they run, residual blocks between two markers.

A residual block x + branch(x) called `block` reads

    block.fork                          remember x
    block.branch.0, block.branch.1 ...  the branch
    block.join                          x <- remembered + x

Blocks may stand inside of branches: a Join takes what the last open Fork remembered. In memory a chain keeps its
`Residual` layers, so it runs and differentiates like any torch module; whatever proves or stores something (bounds,
forward pass, rounding errors, network files, certificate bundles) reads the program. Names are the places of the layers
in the chain, which are also the beginnings of their keys in its `state_dict`.
"""

from collections.abc import Iterable

from torch import nn

from lipcert.layers import Residual

FORK, JOIN = ".fork", ".join"  # what is appended to the name of a block: no name of a torch module holds a dot
_BRANCH = ".branch."


class Fork:
    """Marker: a residual block begins; remember what reaches it."""


class Join:
    """Marker: a residual block ends; add what was remembered."""


Instruction = nn.Module | Fork | Join
_SAME_MEMORY = (nn.Identity, nn.Flatten, nn.ZeroPad2d)  # what these return may be the very tensor they were given


def instructions(chain: nn.Sequential, prefix: str = "") -> list[tuple[str, Instruction]]:
    """Names and layers of the program in order. A layer that stands twice is listed twice.

    Raises:
        TypeError: a residual block whose branch is no plain nn.Sequential with at least one layer, or overwrites what
            the block adds to it.
    """
    program: list[tuple[str, Instruction]] = []
    shared = prefix != ""  # with the tensor that a Fork remembers
    for name, layer in chain._modules.items():
        place = prefix + name
        if shared and getattr(layer, "inplace", False):
            raise TypeError(f"{type(layer).__name__} {place!r} overwrites the skip of its block: use inplace=False")
        shared = shared and type(layer) in _SAME_MEMORY
        if type(layer) is not Residual:
            program.append((place, layer))
            continue
        if type(layer.branch) is not nn.Sequential or not len(layer.branch):
            raise TypeError(f"Residual {place!r}: its branch must be an nn.Sequential of at least one layer")
        program.append((place + FORK, Fork()))
        program += instructions(layer.branch, place + _BRANCH)
        program.append((place + JOIN, Join()))
    return program


def assemble(program: Iterable[tuple[str, Instruction]]) -> nn.Sequential:
    """The chain of a program: the inverse of `instructions`.

    Raises:
        ValueError: markers that do not match, a branch without layers, a name that is no place of its block or is there
            already.
    """
    open_blocks: list[tuple[str, nn.Sequential]] = [("", nn.Sequential())]
    for place, layer in program:
        prefix, chain = open_blocks[-1]
        if isinstance(layer, Fork):
            block = place.removesuffix(FORK)
            open_blocks.append((block + _BRANCH, nn.Sequential()))
            wrong = block == place or not _is_free(block, prefix, chain)
        elif isinstance(layer, Join):
            block = prefix.removesuffix(_BRANCH)
            wrong = len(open_blocks) == 1 or place != block + JOIN or not len(chain)
            if not wrong:
                open_blocks.pop()
                outer, around = open_blocks[-1]
                around.add_module(block.removeprefix(outer), Residual(chain))
        else:
            wrong = not _is_free(place, prefix, chain)
            if not wrong:
                chain.add_module(place.removeprefix(prefix), layer)
        if wrong:
            raise ValueError(f"layer {place!r}: forks and joins must match, each name be new and within its block")
    if len(open_blocks) > 1:
        raise ValueError(f"residual block {open_blocks[-1][0].removesuffix(_BRANCH)!r} has no end")
    return open_blocks[0][1]


def _is_free(place: str, prefix: str, chain: nn.Sequential) -> bool:
    """Whether a layer or block of the chain, whose names begin with the prefix, may be called so."""
    name = place.removeprefix(prefix)
    return place.startswith(prefix) and name != "" and "." not in name and name not in chain._modules
