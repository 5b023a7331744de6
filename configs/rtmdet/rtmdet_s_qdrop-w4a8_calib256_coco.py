# RTMDet-s of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py']

custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    ),
]
