"""Post-training quantization for OpenMMLab detectors and segmentors.

    import taskptq

    model, report = taskptq.quantize(config, checkpoint, recipe='w8a8')
    model, report = taskptq.quantize(model, batches, recipe='w4a4_qdrop')

Importing the package imports neither torch nor mmengine: ``quantize`` and
``load_quantized`` (of ``taskptq.apis``) are imported when they are first
used. mmengine finds the hook and all other building blocks through
``taskptq.registry``.
"""

from typing import TYPE_CHECKING, Any

from taskptq.version import __version__

if TYPE_CHECKING:
    from taskptq.apis import load_quantized, quantize, sensitivity

__all__ = ['__version__', 'load_quantized', 'quantize', 'sensitivity']

_FROM_APIS = ('load_quantized', 'quantize', 'sensitivity')


def __getattr__(name: str) -> Any:
    """Import the Python entry points at their first use."""
    if name not in _FROM_APIS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from taskptq import apis

    return getattr(apis, name)
