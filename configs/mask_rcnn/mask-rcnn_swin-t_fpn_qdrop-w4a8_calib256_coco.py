# Mask R-CNN Swin-T of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = ['mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    )
]
