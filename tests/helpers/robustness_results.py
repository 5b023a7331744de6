"""A results file of ``taskptq bench robustness``, with known scores."""

FLOAT = {
    'fog': (0.36, 0.30, 0.24, 0.16, 0.09),
    'snow': (0.39, 0.38, 0.36, 0.33, 0.29),
}
QUANTIZED = {
    'fog': (0.31, 0.24, 0.17, 0.09, 0.04),
    'snow': (0.35, 0.34, 0.32, 0.28, 0.23),
}


def row(noise, family, float_value, value):
    results = {}
    for name, found in (('float', float_value), ('q', value)):
        if found is None:
            results[name] = {'sha256': name, 'reason': 'it is quantized'}
        else:
            metrics = {'coco/bbox_mAP': found, 'coco/bbox_mAP_50': 2 * found}
            results[name] = {'sha256': name, 'metrics': metrics}
    return {
        'noise': noise,
        'family': family,
        'kind': noise.partition('=')[0],
        'seconds': 1.0,
        'results': results,
    }


def content():
    return {
        'model': 'net',
        'config': 'net.py',
        'images': 8,
        'seed': 0,
        'runs': [
            {
                'command': 'taskptq bench robustness net.py float.pth q.pth',
                'commit': '0' * 40,
                'seconds': 1.0,
                'processes': 1,
            }
        ],
        'subjects': [
            {'name': 'float', 'kind': 'float', 'file': 'f', 'sha256': 'f'},
            {'name': 'q', 'kind': 'quantized', 'file': 'q', 'sha256': 'q'},
        ],
        'rows': [
            row('clean', 'clean', 0.40, 0.36),
            row('crop=1', 'systems', 0.30, 0.28),
            row('precision=float16', 'systems', 0.40, None),
            {
                **row('combined', 'systems', 0.20, 0.10),
                'of': ['crop=1', 'ceil_mode'],
            },
            *(
                row(f'{name}={level}', 'corruptions', one, two)
                for name in FLOAT
                for level, (one, two) in enumerate(
                    zip(FLOAT[name], QUANTIZED[name], strict=True), start=1
                )
            ),
            row('fgsm=4', 'attacks', 0.05, 0.20),
            row('fgsm-transferred=4', 'attacks', None, 0.10),
        ],
    }
