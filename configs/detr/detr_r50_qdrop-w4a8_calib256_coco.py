# DETR R50 of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    )
]
