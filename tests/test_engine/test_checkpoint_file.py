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
    torch.save({'state_dict': {'weight': torch.ones(2)},
                'message_hub': {'log_scalars': {'loss': history}},
                'meta': {'iter': np.int64(3)}}, path)
    assert read_checkpoint(path)['state_dict']['weight'].sum() == 2


@pytest.mark.parametrize('keep', [0.3, 0.9, 0])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / 'whole.pth'
    torch.save({'state_dict': nn.Linear(9, 9).state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * keep)])
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
            return (type(mark).touch, (mark, ))

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
    plain = tmp_path / 'list.pkl'
    plain.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match='list'):
        read_checkpoint(plain, trust_checkpoint=True)
    with pytest.raises(FileNotFoundError, match=r'absent\.pth'):
        local_file(tmp_path / 'absent.pth')


def test_half_precision_and_prefixes():
    model = nn.Linear(3, 2)
    weights = {f'module.{name}': value.half()
               for name, value in nn.Linear(3, 2).state_dict().items()}
    load_float_weights(model, {'state_dict': weights}, path='a.pth')
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight.half(), weights['module.weight'])


def test_weights_of_another_model_are_named():
    with pytest.raises(ValueError, match=r'has weight as \[2, 4\]'):
        load_float_weights(
            nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), path='a.pth')
    with pytest.raises(ValueError, match='lacks bias'):
        load_float_weights(
            nn.Linear(3, 2), nn.Linear(3, 2, bias=False).state_dict(),
            path='a.pth')


def test_quantized_file_is_no_float_checkpoint():
    with pytest.raises(ValueError, match='quantized already'):
        load_float_weights(
            nn.Linear(3, 2), {'taskptq': {'schema': 1}}, path='q.pth')
