from scripts import load_script

collect = load_script('edge_challenge', 'collect')


def test_each_file_has_a_line():
    row = {
        'model': 'w8a8',
        'accuracy': 0.5,
        'seconds_per_image': 0.02,
        'score': 25.0,
        'file_bytes': 2**20,
    }
    result = {
        'config': 'configs/net.py',
        'runtime': 'ONNX Runtime',
        'command': 'python measure.py net.py',
        'rows': [{**row, 'model': 'float'}, row],
    }
    text = collect.page([result])
    (line,) = [one for one in text.splitlines() if 'w8a8' in one]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells == ['net', 'w8a8', '0.5000', '20.0', '25.00', '1.00']
    assert text.endswith('    python measure.py net.py\n')
