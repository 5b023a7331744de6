# VisDrone2019-DET (Zhu et al., TPAMI 2021), in its official layout:
#   data/VisDrone2019-DET/VisDrone2019-DET-{train,val}/images/*.jpg
#   data/VisDrone2019-DET/VisDrone2019-DET-{train,val}/annotations/*.txt
# projects/small_objects/convert_visdrone.py writes them as COCO JSON.
# A leaf puts these parts into the loaders of a COCO config.
root = 'data/VisDrone2019-DET/'
metainfo = dict(
    classes=(
        'pedestrian',
        'people',
        'bicycle',
        'car',
        'van',
        'truck',
        'tricycle',
        'awning-tricycle',
        'bus',
        'motor',
    ),
    palette=[
        (220, 20, 60),
        (255, 120, 120),
        (119, 11, 32),
        (0, 0, 142),
        (0, 60, 100),
        (0, 0, 70),
        (250, 170, 30),
        (200, 130, 0),
        (0, 80, 100),
        (0, 0, 230),
    ],
)

train_dataset = dict(
    type='CocoDataset',
    metainfo=metainfo,
    data_root=root,
    ann_file='VisDrone2019-DET-train/train.json',
    data_prefix=dict(img='VisDrone2019-DET-train/images/'),
)
eval_dataset = dict(
    type='CocoDataset',
    metainfo=metainfo,
    data_root=root,
    ann_file='VisDrone2019-DET-val/val.json',
    data_prefix=dict(img='VisDrone2019-DET-val/images/'),
)
# An image holds up to several hundred objects.
evaluator = dict(
    ann_file=root + 'VisDrone2019-DET-val/val.json',
    proposal_nums=(100, 300, 500),
)
