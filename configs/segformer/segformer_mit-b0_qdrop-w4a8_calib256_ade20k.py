# SegFormer-B0 (ADE20K) of mmseg's zoo, quantized to W4A8 with QDrop.
_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    )
]
