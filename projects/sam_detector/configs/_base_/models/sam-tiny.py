# SAM of 1.9 M parameters at 256x256 pixels. Each box is also given as a
# filled low-resolution mask: a small model has few channels to read it from
# two corner embeddings.
model = dict(
    type='SAMDetector',
    data_preprocessor=dict(type='SAMDataPreprocessor', image_size=256),
    sam=dict(type='PromptedSAM', size='tiny', box_mask_prompt=True),
    prompts=('gt_box',),
)
