# Conditional DETR R50 of mmdet's zoo, quantized to 4-4-8 with DRD.
_base_ = ['mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a4-8_drd',
        calibration=dict(num_images=256),
    )
]
