# The loss of the baseline, GIoU, beside the cross-entropy: it reads the
# expectations.
_base_ = './fcos_r18-half_grid_nuclei.py'

model = dict(bbox_head=dict(loss_iou=dict(type='GIoULoss', loss_weight=1.0)))
