import types

from taskptq.robustness.touched import replaced


class Counter:
    def step(self):
        return 1


def test_attributes_of_modules_and_methods_come_back():
    module = types.SimpleNamespace(value=1)
    with replaced(module, 'value', 2):
        assert module.value == 2
    assert module.value == 1
    counter = Counter()
    with replaced(counter, 'step', lambda: 5):
        assert counter.step() == 5
    assert counter.step() == 1
    assert 'step' not in vars(counter)
