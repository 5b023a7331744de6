# LSTR on whole frames of TuSimple, about 400,000 iterations. The published
# weights fit it: `python -m lane_detection.convert_lstr SOURCE OUT`.
_base_ = [
    './_base_/models/lstr_r18s.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/adamw_step.py',
    './_base_/runtime/lane.py',
]
