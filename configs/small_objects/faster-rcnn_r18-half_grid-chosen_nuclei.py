# The grids that rank first by what logits of 4 bits would cost on the
# coordinates of the detector beside it (results/grid-choice_faster-rcnn.json):
# no wider than predictions are, and with more points.
_base_ = './faster-rcnn_r18-half_grid_nuclei.py'

model = dict(
    rpn_head=dict(grid=dict(alpha=0.3, beta=1.5, num_intervals=16)),
    roi_head=dict(
        bbox_head=dict(grid=dict(alpha=2.66, beta=0.0, num_intervals=16))
    ),
)
