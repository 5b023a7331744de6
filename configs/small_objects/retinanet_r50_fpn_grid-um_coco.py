# RetinaNet that localizes over a grid, with uncertainty minimization (UGS).
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    bbox_head=dict(
        type='taskptq.GridRetinaHead',
        grid=dict(alpha=2.0, beta=1.0, num_intervals=10),
        loss_bbox=dict(
            _delete_=True, type='taskptq.GridLoss', uncertainty='min'
        ),
    )
)
