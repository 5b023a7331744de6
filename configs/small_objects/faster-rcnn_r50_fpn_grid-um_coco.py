# Faster R-CNN that localizes over a grid, with uncertainty minimization (UGS).
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    rpn_head=dict(
        type='taskptq.GridRPNHead',
        grid=dict(alpha=2.0, beta=1.0, num_intervals=10),
        loss_bbox=dict(
            _delete_=True, type='taskptq.GridLoss', uncertainty='min'
        ),
    ),
    roi_head=dict(
        bbox_head=dict(
            type='taskptq.GridShared2FCBBoxHead',
            grid=dict(alpha=5.0, beta=1.0, num_intervals=5),
            loss_bbox=dict(
                _delete_=True, type='taskptq.GridLoss', uncertainty='min'
            ),
        )
    ),
)
