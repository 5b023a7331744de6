"""Heads and detectors that subclass the hosts' classes; imported lazily."""

import importlib.util

# Registered at the first look-up, if their host is installed.
if importlib.util.find_spec('mmdet') is not None:
    from taskptq.models import small_detr  # noqa: F401
    from taskptq.models.grid import (  # noqa: F401
        atss_head,
        bbox_head,
        detr_head,
        fcos_head,
        gfl_head,
        head,
        refinement,
        retina_head,
        rpn_head,
        wasserstein,
    )
