"""What a runtime asks of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskptq.core.settings import Choice
from taskptq.prepare.points import POINTS

RUNTIMES = ('onnxruntime', 'openvino', 'tensorrt')


def for_runtime(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a qconfig with what its runtime asks for.

    Weights have no zero point, which costs integer convolutions up to 75
    times their time. TensorRT reads signed activations without one, too.

    >>> found = for_runtime({'deploy': 'tensorrt', 'query': False})
    >>> found['activation'], found['query']
    ({'symmetric': True, 'signed': True, 'per_channel': False}, False)

    Args:
        config: Plain form of a qconfig; ``deploy`` is the runtime, or None.

    Raises:
        SettingError: If there is no such runtime.
    """
    runtime = config.get('deploy')
    if runtime is None:
        return dict(config)
    Choice(choices=RUNTIMES).read(runtime, name='qconfig.deploy')
    asked: dict[str, dict[str, Any]] = {'weight': {'symmetric': True}}
    if runtime == 'tensorrt':
        signed = {'symmetric': True, 'signed': True}
        asked |= {point: signed for point in POINTS if point != 'weight'}
        asked['activation'] = {**signed, 'per_channel': False}
    made = _with(config, asked)
    for point in ('weight', 'activation'):
        if config.get(point) is None and point in asked:
            made[point] = dict(asked[point])
    overrides = config.get('overrides')
    if isinstance(overrides, (list, tuple)):
        made['overrides'] = [
            _with(o, asked) if isinstance(o, Mapping) else o for o in overrides
        ]
    return made


def _with(
    config: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Change the points that a dict sets."""
    return {
        key: {**value, **asked[key]}
        if key in asked and isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }
