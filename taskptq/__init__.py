"""Post-training quantization for OpenMMLab detectors and segmentors.

Importing the package imports neither torch nor mmengine. The hook and all
other building blocks are found by mmengine through ``taskptq.registry``; the
Python entry point is ``taskptq.apis.quantize``.
"""

from taskptq.version import __version__

__all__ = ['__version__']
