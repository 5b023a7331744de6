# The entropy of each coordinate is matched with that of its target.
_base_ = './faster-rcnn_r18-half_grid_nuclei.py'

model = dict(
    rpn_head=dict(loss_bbox=dict(uncertainty='match')),
    roi_head=dict(bbox_head=dict(loss_bbox=dict(uncertainty='match'))),
)
