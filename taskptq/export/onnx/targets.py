"""What each runtime needs of a file."""

from __future__ import annotations

from dataclasses import dataclass

from taskptq.core.setting_error import refuse


@dataclass(frozen=True, kw_only=True)
class Target:
    """Rules of one runtime.

    Args:
        name: Its name in settings.
        unsigned: Whether activations are uint8 (else int8).
        zero_points: Whether activations may have zero points.
        integer_bias: Whether biases become int32.
        completes: Whether a layer runs in integers only if its output is on
            a grid, so that missing grids are added.
        merges_patches: Whether it runs SpaceToDepth faster than slices.
    """

    name: str
    unsigned: bool = True
    zero_points: bool = True
    integer_bias: bool = True
    completes: bool = False
    merges_patches: bool = True


TARGETS = {
    target.name: target
    for target in (
        Target(name='onnxruntime', completes=True),
        Target(name='openvino', integer_bias=False),
        Target(
            name='tensorrt',
            unsigned=False,
            zero_points=False,
            integer_bias=False,
            # Not known, since it never ran.
            merges_patches=False,
        ),
    )
}


def find_target(name: str) -> Target:
    """Return the rules of a runtime.

    Raises:
        SettingError: If there are none.
    """
    if name not in TARGETS:
        raise refuse('target', name, f'give one of {", ".join(TARGETS)}')
    return TARGETS[name]
