# Faster R-CNN R50 of mmdet's zoo, quantized to W4A8 with QDrop.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    )
]
