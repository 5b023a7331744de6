# AI-TOD (Wang et al., ICPR 2020), in its official layout:
#   data/AI-TOD/annotations/aitod_{trainval,test}_v1.json
#   data/AI-TOD/{trainval,test}/images/*.png
# A leaf puts these parts into the loaders of a COCO config, as with
# visdrone.py. The evaluator is COCO's: the set's own size groups (very tiny,
# tiny, ...) need its fork of pycocotools.
root = 'data/AI-TOD/'
metainfo = dict(
    classes=(
        'airplane',
        'bridge',
        'storage-tank',
        'ship',
        'swimming-pool',
        'vehicle',
        'person',
        'wind-mill',
    ),
    palette=[
        (220, 20, 60),
        (119, 11, 32),
        (250, 170, 30),
        (0, 80, 100),
        (0, 170, 220),
        (0, 0, 142),
        (255, 120, 120),
        (120, 120, 120),
    ],
)

train_dataset = dict(
    type='CocoDataset',
    metainfo=metainfo,
    data_root=root,
    ann_file='annotations/aitod_trainval_v1.json',
    data_prefix=dict(img='trainval/images/'),
)
eval_dataset = dict(
    type='CocoDataset',
    metainfo=metainfo,
    data_root=root,
    ann_file='annotations/aitod_test_v1.json',
    data_prefix=dict(img='test/images/'),
)
# An image holds up to a few thousand objects.
evaluator = dict(
    ann_file=root + 'annotations/aitod_test_v1.json',
    proposal_nums=(100, 300, 1500),
)
