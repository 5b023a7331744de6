# Deformable DETR R50 of mmdet's zoo prompts SAM.
# For testing and quantizing: of the detector's training only the data set is
# used, for calibration images.
_base_ = ['mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py']
custom_imports = dict(imports=['sam_detector'])

model = dict(
    _delete_=True,
    type='SAMDetector',
    data_preprocessor=dict(
        type='SAMDataPreprocessor', detector=_base_.model.data_preprocessor
    ),
    detector=_base_.model,
    sam=dict(type='PromptedSAM', size='vit_b'),
    prompts=('detector',),
    # COCO's AP looks at the best 100 instances of an image.
    test_cfg=dict(max_prompts=100),
)

test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='SAMViews', image_size=1024),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackSAMInputs', image_size=1024),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='InstanceCocoMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
