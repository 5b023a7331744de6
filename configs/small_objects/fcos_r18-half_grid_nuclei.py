# Sides are located over a one-sided grid of strides, denser near 0. Ranges end
# at 8 strides on all levels but the last. The weight makes a mean of the four
# sides, of the size of the GIoU loss that it replaces.
_base_ = './fcos_r18-half_plain_nuclei.py'

model = dict(
    bbox_head=dict(
        type='taskptq.GridFCOSHead',
        grid=dict(alpha=8.0, beta=0.25, num_intervals=16, one_sided=True),
        loss_bbox=dict(
            _delete_=True, type='taskptq.GridLoss', loss_weight=0.25
        ),
    )
)
