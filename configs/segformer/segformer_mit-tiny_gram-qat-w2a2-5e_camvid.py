# As with one epoch, but five.
_base_ = ['./segformer_mit-tiny_gram-qat-w2a2_camvid.py']

train_cfg = dict(max_epochs=5, val_interval=5)
