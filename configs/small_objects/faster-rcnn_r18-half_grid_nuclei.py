# Both stages localize by classification over a grid that is dense around 0
# (C-BBL / UGS: cross-entropy, interval non-uniform labels).
_base_ = './faster-rcnn_r18-half_plain_nuclei.py'

model = dict(
    rpn_head=dict(
        type='taskptq.GridRPNHead',
        grid=dict(alpha=2.0, beta=1.0, num_intervals=10),
        loss_bbox=dict(_delete_=True, type='taskptq.GridLoss'),
    ),
    roi_head=dict(
        bbox_head=dict(
            type='taskptq.GridShared2FCBBoxHead',
            grid=dict(alpha=5.0, beta=1.0, num_intervals=5),
            loss_bbox=dict(_delete_=True, type='taskptq.GridLoss'),
        )
    ),
)
