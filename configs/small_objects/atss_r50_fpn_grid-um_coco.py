# ATSS that localizes over a grid, with uncertainty minimization (UGS).
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='taskptq.GridATSSHead',
        grid=dict(alpha=10.0, beta=0.2, num_intervals=16),
        # The mean of the four sides, with the weight of the GIoU loss.
        loss_bbox=dict(
            _delete_=True,
            type='taskptq.GridLoss',
            uncertainty='min',
            loss_weight=0.5,
        ),
    )
)
