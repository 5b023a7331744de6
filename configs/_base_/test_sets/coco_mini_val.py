# How tables judge detectors on coco_mini_val: AP, its interval over images,
# and agreement with the float model's boxes.
ann_file = 'data/coco_mini_val/val.json'
float_boxes = '{work_dir}/float_boxes.json'

reference_evaluator = dict(type='taskptq.BoxDump', out=float_boxes)
test_evaluator = [
    dict(
        type='CocoMetric',
        ann_file=ann_file,
        metric='bbox',
        format_only=False,
        backend_args=None,
    ),
    dict(
        type='taskptq.BoxAgreement',
        reference=float_boxes,
        ann_file=ann_file,
    ),
]
