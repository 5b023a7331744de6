# LaneATT on three stages of a ResNet-18 of half width, trained from scratch on
# culane_mini and drawn roads at 144x400, a stride of 16. Distances in pixels
# of this input are the paper's in pixels of 640, where lanes bend: of 672
# anchors the nearest is often farther away than of 2784.
_base_ = [
    './_base_/models/laneatt_r18.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(
    backbone=dict(
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        init_cfg=None,
    ),
    head=dict(
        in_channels=128,
        img_size=(144, 400),
        feat_channels=32,
        stride=16,
        num_side=16,
        num_bottom=32,
        init_std=0.01,
    ),
    # Without suppression in training: others found no loss by it.
    train_cfg=dict(nms=None),
    test_cfg=dict(score_thr=0.5, nms_thr=30.0),
)

train_cfg = dict(max_epochs=10, val_interval=10)
