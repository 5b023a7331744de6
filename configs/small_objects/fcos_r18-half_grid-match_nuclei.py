# The entropy of each side is matched with that of its target.
_base_ = './fcos_r18-half_grid_nuclei.py'

model = dict(bbox_head=dict(loss_bbox=dict(uncertainty='match')))
