# SegFormer-B0 (Cityscapes) of mmseg's zoo, quantized to W4A8 with QDrop.
_base_ = [
    __import__('mmseg').__path__[0] + '/.mim/configs/segformer/'
    'segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
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
