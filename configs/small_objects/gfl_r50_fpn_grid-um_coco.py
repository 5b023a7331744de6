# GFL that localizes over a grid, with uncertainty minimization (UGS).
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

# Cross-entropy over the grid replaces both GIoU and the distribution focal
# loss.
model = dict(
    bbox_head=dict(
        type='taskptq.GridGFLHead',
        grid=dict(alpha=16.0, beta=0.125, num_intervals=16, one_sided=True),
        # The mean of the four sides, with the weight of the GIoU loss.
        loss_bbox=dict(
            _delete_=True,
            type='taskptq.GridLoss',
            uncertainty='min',
            loss_weight=0.5,
        ),
    )
)
