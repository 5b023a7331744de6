# FCOS that localizes over a grid, with uncertainty minimization (UGS).
_base_ = (
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-'
    'centeronreg-giou_1x_coco.py'
)

model = dict(
    bbox_head=dict(
        type='taskptq.GridFCOSHead',
        grid=dict(alpha=8.0, beta=0.25, num_intervals=16, one_sided=True),
        # The mean of the four sides, with the weight of the GIoU loss.
        loss_bbox=dict(
            _delete_=True,
            type='taskptq.GridLoss',
            uncertainty='min',
            loss_weight=0.25,
        ),
    )
)
