# DINO with four scales that localizes over a grid, with uncertainty
# minimization (UGS).
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    bbox_head=dict(
        type='taskptq.GridDINOHead',
        grid=dict(alpha=6.0, beta=1 / 3, num_intervals=16),
        loss_grid=dict(type='taskptq.GridLoss', uncertainty='min'),
    )
)
