# 32 images of the training split.
calibration = dict(num_images=32)
