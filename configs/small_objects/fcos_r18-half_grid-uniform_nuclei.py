# Cross-entropy over evenly spaced points.
_base_ = './fcos_r18-half_grid_nuclei.py'

model = dict(bbox_head=dict(grid=dict(beta=0.0)))
