# RTMDet-s of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = [
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    '../_base_/quant/w4a8_qdrop.py',
    '../_base_/calibration/calib256.py',
]

custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        reconstruction=_base_.reconstruction,
        calibration=_base_.calibration,
    ),
]
