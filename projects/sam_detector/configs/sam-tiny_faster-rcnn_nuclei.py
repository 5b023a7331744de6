# SAM-tiny prompted by Faster R-CNN, and by the annotated boxes, on nuclei:
# one pass gives the predictions of both, from the same image embeddings. The
# training set only gives calibration images, which the detector prompts: no
# label is used.
_base_ = ['./faster-rcnn_r18-half_fpn_nuclei.py']
custom_imports = dict(imports=['sam_detector'])

model = dict(
    _delete_=True,
    type='SAMDetector',
    data_preprocessor=dict(
        type='SAMDataPreprocessor',
        image_size={{_base_.sam_size}},
        detector=_base_.model.data_preprocessor,
    ),
    detector=_base_.model,
    sam=dict(type='PromptedSAM', size='tiny', box_mask_prompt=True),
    prompts=('detector', 'gt_box'),
    test_cfg=dict(
        score_thr=0.2,
        max_prompts=100,
        views_per_batch=16,
        remember_detections=True,
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='SAMViews',
        image_size={{_base_.sam_size}},
        zoom={{_base_.sam_zoom}},
    ),
    dict(
        type='Resize', scale_factor={{_base_.detector_zoom}}, keep_ratio=True
    ),
    # Boxes and masks stay in the coordinates of the original image, where
    # the metrics compare them and where they may serve as prompts.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackSAMInputs', image_size={{_base_.sam_size}}),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = [
    dict(
        type='InstanceCocoMetric',
        ann_file='data/nuclei/val.json',
        metric=['bbox', 'segm'],
    ),
    dict(type='PromptedMaskMetric', prompts='gt_box'),
    dict(type='PromptedMaskMetric', prompts='detector'),
]
test_evaluator = val_evaluator
