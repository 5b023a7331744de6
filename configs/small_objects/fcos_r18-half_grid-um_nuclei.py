# With uncertainty minimization (UGS): the entropy of each side.
_base_ = './fcos_r18-half_grid_nuclei.py'

model = dict(bbox_head=dict(loss_bbox=dict(uncertainty='min')))
