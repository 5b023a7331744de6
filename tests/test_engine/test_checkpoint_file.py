"""Float checkpoint files: read safely, refused in one sentence."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)


class Strange:
    """What a stranger's pickle might hold."""


def one_sentence(error):
    text = str(error.value)
    return '\n' not in text and len(text) < 400


def test_training_checkpoint_is_read(tmp_path):
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer()
    history.update(0.5)
    path = tmp_path / 'epoch_1.pth'
    torch.save(
        {
            'state_dict': {'weight': torch.ones(2)},
            'message_hub': {'log_scalars': {'loss': history}},
            'meta': {'iter': np.int64(3)},
        },
        path,
    )
    assert read_checkpoint(path)['state_dict']['weight'].sum() == 2


@pytest.mark.parametrize('keep', [0.3, 0.9, 0])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': nn.Linear(9, 9).state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match='fetch or write it again') as error:
        read_checkpoint(path)
    assert one_sentence(error)


def test_strange_objects_need_trust(tmp_path):
    path = tmp_path / 'strange.pth'
    torch.save({'state_dict': {}, 'extra': Strange()}, path)
    with pytest.raises(ValueError, match='--trust-checkpoint') as error:
        read_checkpoint(path)
    assert one_sentence(error)
    trusted = read_checkpoint(path, trust_checkpoint=True)
    assert isinstance(trusted['extra'], Strange)


def test_nothing_of_the_file_is_run(tmp_path):
    mark = tmp_path / 'ran'

    class Touch:
        def __reduce__(self):
            return (type(mark).touch, (mark,))

    path = tmp_path / 'touch.pth'
    torch.save({'state_dict': Touch()}, path)
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        read_checkpoint(path)
    assert not mark.exists()


def test_other_files(tmp_path):
    text = tmp_path / 'page.pth'
    text.write_text('<html>not found</html>')
    with pytest.raises(ValueError, match='not a plain checkpoint'):
        read_checkpoint(text)
    with pytest.raises(ValueError, match=r'm\.onnx is an exported file'):
        read_checkpoint(tmp_path / 'm.onnx')
    plain = tmp_path / 'list.pkl'
    plain.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match='list'):
        read_checkpoint(plain, trust_checkpoint=True)
    with pytest.raises(FileNotFoundError, match=r'absent\.pth'):
        local_file(tmp_path / 'absent.pth')


def test_half_precision_and_prefixes():
    model = nn.Linear(3, 2)
    weights = {
        f'module.{name}': value.half()
        for name, value in nn.Linear(3, 2).state_dict().items()
    }
    load_float_weights(model, {'state_dict': weights}, path='a.pth')
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight.half(), weights['module.weight'])


def test_weights_of_another_model_are_named():
    with pytest.raises(ValueError, match=r'has weight as \[2, 4\]'):
        load_float_weights(
            nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), path='a.pth'
        )
    with pytest.raises(ValueError, match='lacks bias'):
        load_float_weights(
            nn.Linear(3, 2),
            nn.Linear(3, 2, bias=False).state_dict(),
            path='a.pth',
        )


def test_quantized_file_is_no_float_checkpoint():
    with pytest.raises(ValueError, match='quantized already'):
        load_float_weights(
            nn.Linear(3, 2), {'taskptq': {'schema': 1}}, path='q.pth'
        )


@pytest.mark.parametrize(
    ('make', 'problem'),
    [
        (lambda: torch.ones(2, 2).to_sparse(), 'sparse'),
        (lambda: torch.ones(2, device='meta'), 'meta'),
        (
            lambda: torch.quantize_per_tensor(
                torch.ones(2), 1.0, 0, torch.qint8
            ),
            'qint8',
        ),
        (lambda: torch.ones(1).expand(10**9), '4,000,000,000 bytes'),
    ],
)
@pytest.mark.parametrize('trust', [True, False])
def test_tensors_that_are_no_weights(tmp_path, make, problem, trust):
    path = tmp_path / 'odd.pth'
    torch.save({'state_dict': {'body.weight': make()}}, path)
    with pytest.raises(ValueError, match=r'odd\.pth') as error:
        read_checkpoint(path, trust_checkpoint=trust)
    assert one_sentence(error)
    if trust or 'bytes' in problem:
        assert 'state_dict.body.weight' in str(error.value)
        assert problem in str(error.value)


def test_ordinary_views_are_read(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    state = {
        'a': base,
        'b': base.t(),
        'c': base[1:],
        'd': base[:, ::2],
        'e': torch.ones(1).expand(1, 7),
    }
    path = tmp_path / 'views.pth'
    torch.save({'state_dict': state, 'tied': [state, state]}, path)
    found = read_checkpoint(path)['state_dict']
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_nesting_without_end_is_read_once(tmp_path):
    part = [torch.ones(2)]
    for _ in range(60):
        part = [part, part]
    path = tmp_path / 'deep.pth'
    torch.save({'state_dict': {}, 'x': part}, path)
    assert read_checkpoint(path)['x'][0][0] is not None


def test_quantized_files_have_one_reader(tmp_path):
    from taskptq.export import QuantizedCheckpointError, load, pack_model, save
    from taskptq.export.checkpoint import VerifiedPayload
    from taskptq.modules.base import Scheme
    from taskptq.modules.linear import QuantLinear

    model = QuantLinear.from_float(nn.Linear(2, 2), scheme=Scheme())
    payload = pack_model(model, recipe={}, meta={'classes': ['a']})
    path = tmp_path / 'q.pth'
    save(payload, path)
    found = read_checkpoint(path)
    assert isinstance(found, VerifiedPayload)
    assert found['digest'] == load(path)['digest']
    payload['meta']['classes'] = ['b']
    save(payload, path)
    for read in (read_checkpoint, load):
        with pytest.raises(QuantizedCheckpointError, match=r'q\.pth.*digest'):
            read(path)


@pytest.mark.parametrize(
    ('state', 'problem'),
    [
        ({3: torch.ones(2)}, 'key 3'),
        ({'weight': torch.ones(2, 3).int(), 'bias': torch.ones(2)}, 'int32'),
        ({}, 'lacks weight'),
        ({'weight': 3, 'bias': None}, 'lacks weight'),
        (3, 'no state_dict'),
    ],
)
def test_state_dicts_of_another_kind(state, problem):
    with pytest.raises(ValueError, match=problem) as error:
        load_float_weights(nn.Linear(3, 2), {'state_dict': state}, path='a')
    assert one_sentence(error)
