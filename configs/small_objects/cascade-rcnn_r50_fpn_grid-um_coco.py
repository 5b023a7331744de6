# Cascade R-CNN that localizes over a grid, with uncertainty minimization
# (UGS).
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'

# The stages divide their targets by their own stds, so one grid fits all.
model = dict(
    rpn_head=dict(
        type='taskptq.GridRPNHead',
        grid=dict(alpha=2.0, beta=1.0, num_intervals=10),
        loss_bbox=dict(
            _delete_=True, type='taskptq.GridLoss', uncertainty='min'
        ),
    ),
    roi_head=dict(
        bbox_head=[
            dict(
                type='taskptq.GridShared2FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                reg_class_agnostic=True,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=target_stds,
                ),
                grid=dict(alpha=5.0, beta=1.0, num_intervals=5),
                loss_bbox=dict(type='taskptq.GridLoss', uncertainty='min'),
            )
            for target_stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ]
    ),
)
