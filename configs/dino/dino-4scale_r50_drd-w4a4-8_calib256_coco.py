# DINO 4-scale R50 of mmdet's zoo, quantized to 4-4-8 with DRD.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a4-8_drd',
        calibration=dict(num_images=256),
    )
]
