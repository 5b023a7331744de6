_base_ = [
    './sam-b_faster-rcnn_coco.py',
    './_base_/quant/w4a4_ptq4sam-l.py',
    '../../../configs/_base_/calibration/calib32.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        reconstruction=dict(_base_.reconstruction, steps=2000, batch_size=1),
        rewrites=_base_.rewrites,
        calibration=_base_.calibration,
    )
]
