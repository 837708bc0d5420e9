"""A search space of your own: a function that returns its declaration.

A search config names it as `space: my_space:compact`; `options` there are the function's arguments. The module lies
beside the config or in the current folder.
"""

from __future__ import annotations

from search_spaces import MBConvDeclaration, Stage


def compact(*, width: int = 16, kernels: tuple[int, ...] = (3, 5)) -> MBConvDeclaration:
    """Declare five blocks for images of 16 to 64 pixels.

    The first block of each stage changes the width or the resolution, so it has no `skip` candidate; the others have.

    Args:
        width: Channels of the first stage; the second has twice as many.
        kernels: Kernel sizes that a block chooses from.
    """
    return MBConvDeclaration(
        name="compact",
        stem_width=8,
        stem_stride=2,
        first_width=8,
        stages=(Stage(width=width, depth=2, stride=2), Stage(width=2 * width, depth=3, stride=2)),
        kernels=tuple(kernels),
        expansions=(2, 4),
        head_width=128,
        activation="hard_swish",
    )
