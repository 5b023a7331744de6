# RetinaNet R50 of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/quant/w4a8_qdrop.py',
    '../_base_/calibration/calib256.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        reconstruction=_base_.reconstruction,
        calibration=_base_.calibration,
    )
]
