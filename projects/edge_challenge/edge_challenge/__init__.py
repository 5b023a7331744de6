"""The low-power computer vision challenge of 2023, segmentation track."""

from importlib.util import find_spec

if find_spec('mmseg') is not None:
    from edge_challenge import dataset, metric  # noqa: F401 - register
