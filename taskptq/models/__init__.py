"""Heads and detectors that subclass the hosts' classes; imported lazily."""
import importlib.util

# Registered at the first look-up, where their host is installed.
if importlib.util.find_spec('mmdet') is not None:
    from taskptq.models import (  # noqa: F401
        grid_atss_head,
        grid_bbox_head,
        grid_detr_head,
        grid_fcos_head,
        grid_gfl_head,
        grid_head,
        grid_retina_head,
        grid_rpn_head,
        refinement,
        small_detr,
        wasserstein,
    )
