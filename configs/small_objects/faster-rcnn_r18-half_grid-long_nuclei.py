# Three times the schedule: is a difference one of training speed?
_base_ = './faster-rcnn_r18-half_grid_nuclei.py'

train_cfg = dict(max_epochs=36, val_interval=36)
