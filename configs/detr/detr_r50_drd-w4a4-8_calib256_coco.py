# DETR R50 of mmdet's zoo, quantized to 4-4-8 with DRD.
_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    '../_base_/quant/w4a4-8_drd.py',
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
