# Cross-entropy over evenly spaced points.
_base_ = './faster-rcnn_r18-half_grid_nuclei.py'

model = dict(
    rpn_head=dict(grid=dict(beta=0.0)),
    roi_head=dict(bbox_head=dict(grid=dict(beta=0.0))),
)
