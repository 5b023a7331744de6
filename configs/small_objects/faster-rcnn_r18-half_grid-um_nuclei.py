# With uncertainty minimization (UGS): the entropy of each coordinate.
_base_ = './faster-rcnn_r18-half_grid_nuclei.py'

model = dict(
    rpn_head=dict(loss_bbox=dict(uncertainty='min')),
    roi_head=dict(bbox_head=dict(loss_bbox=dict(uncertainty='min'))),
)
