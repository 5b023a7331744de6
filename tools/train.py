"""Run ``taskptq/cli/train.py``, which says what it does."""

from taskptq.cli.train import main

if __name__ == '__main__':
    main()
