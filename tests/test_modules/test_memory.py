import torch
from torch import nn

from taskptq.modules.memory import is_exporting, same_start, shares_memory


class Compared(nn.Module):
    """Tells what it sees of its tensors, also inside of a trace."""

    def __init__(self, tell):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.tell = tell

    def forward(self, x):
        first, again = x.transpose(0, 1), x.transpose(0, 1)
        self.tell(
            is_exporting(),
            {
                'views': same_start(first, again),
                'shifted': same_start(x[1:], x),
                'others': same_start(x, x + 1),
                'weight': shares_memory(self.weight.t(), self.weight),
                'copy': shares_memory(self.weight.clone(), self.weight),
            },
        )
        return first @ self.weight + again


def test_torch_export_sees_what_plain_runs_see():
    found = []
    model = Compared(lambda *seen: found.append(seen)).eval()
    x = torch.zeros(4, 4)
    model(x)
    ((exporting, plain),) = found
    assert not exporting
    assert plain == {
        'views': True,
        'shifted': False,
        'others': False,
        'weight': True,
        'copy': False,
    }
    torch.export.export(model, (x,), strict=False)
    assert len(found) > 1
    assert all(seen == plain for _, seen in found)
    assert any(exporting for exporting, _ in found)
