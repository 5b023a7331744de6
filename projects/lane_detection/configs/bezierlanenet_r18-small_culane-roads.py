# BezierLaneNet on three stages of a ResNet-18 of half width, trained on
# culane_mini and drawn roads at 144x400: 25 columns. From scratch its curves
# are still far off after the time that others need, so the backbone starts
# from that of our LaneATT, which is the same. The committed checkpoint came of
# two runs: max_epochs=8, then 16 more, with load_from the end of the first and
# a rate that rose and fell anew.
_base_ = [
    './_base_/models/bezierlanenet_r18.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(
    backbone=dict(
        base_channels=32,
        init_cfg=dict(
            type='Pretrained',
            prefix='backbone.',
            checkpoint='projects/lane_detection/configs/checkpoints/'
            'laneatt_r18-small_culane-roads.pth',
        ),
    ),
    neck=dict(in_channels=128, mid_channels=32, dilations=(2, 4)),
    head=dict(
        in_channels=128,
        aux_channels=128,
        aux_hidden=32,
        lane_width=4.0,
        relative=True,
    ),
    train_cfg=dict(window=5),
    test_cfg=dict(score_thr=0.5, window=5),
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(conv_offset=dict(lr_mult=0.1)))
)
train_cfg = dict(max_epochs=24, val_interval=8)
