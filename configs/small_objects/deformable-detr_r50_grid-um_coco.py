# Deformable DETR (two stages, refined boxes) that localizes over a grid, with
# uncertainty minimization (UGS).
_base_ = (
    'mmdet::deformable_detr/'
    'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
)

model = dict(
    bbox_head=dict(
        type='taskptq.GridDeformableDETRHead',
        grid=dict(alpha=6.0, beta=1 / 3, num_intervals=16),
        loss_grid=dict(type='taskptq.GridLoss', uncertainty='min'),
    )
)
