# The grid in the second stage alone; proposals are regressed directly.
_base_ = './faster-rcnn_r18-half_plain_nuclei.py'

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type='taskptq.GridShared2FCBBoxHead',
            grid=dict(alpha=5.0, beta=1.0, num_intervals=5),
            loss_bbox=dict(_delete_=True, type='taskptq.GridLoss'),
        )
    )
)
