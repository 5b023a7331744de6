"""Counterpart classes made at run time for classes of host packages."""

from __future__ import annotations

import types

from torch import nn

from taskptq.modules.base import QuantModule

_MADE: dict[tuple[type, type], type[QuantModule]] = {}


def counterpart_class(
    impl: type[QuantModule], float_class: type[nn.Module]
) -> type[QuantModule]:
    """Return the class that quantizes ``float_class`` by ``impl``.

    It subclasses both, ``impl`` first, so no host package is imported here
    and ``isinstance(quant, float_class)`` holds. Each pair has one class,
    whose instances can be copied and pickled.

    >>> class HostLinear(nn.Linear): ...
    >>> from taskptq.modules import QuantLinear
    >>> quant_class = counterpart_class(QuantLinear, HostLinear)
    >>> quant_class.__name__, quant_class.__bases__[0].__name__
    ('QuantHostLinear', 'QuantLinear')
    >>> counterpart_class(QuantLinear, nn.Linear) is QuantLinear
    True

    Args:
        impl: Implementation, a QuantModule.
        float_class: Class of the float module, ``type(module)``.
    """
    if issubclass(impl, float_class):
        return impl
    if (impl, float_class) in _MADE:
        return _MADE[impl, float_class]
    body = {
        '__module__': impl.__module__,
        '__doc__': f'Counterpart of {float_class.__name__}.',
        # No module attribute names this class, so pickle needs its recipe.
        '__reduce_ex__': lambda self, protocol: (
            _new,
            (impl, float_class),
            self.__dict__,
        ),
    }
    name = f'Quant{float_class.__name__}'
    bases = (impl, float_class)
    _MADE[impl, float_class] = types.new_class(
        name, bases, exec_body=lambda namespace: namespace.update(body)
    )
    return _MADE[impl, float_class]


def _new(impl: type[QuantModule], float_class: type[nn.Module]) -> object:
    return object.__new__(counterpart_class(impl, float_class))
