# Deformable DETR R50 of mmdet's zoo, quantized to 4-4-8 with DRD.
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a4-8_drd',
        calibration=dict(num_images=256),
    )
]
