"""Run ``taskptq/cli/test.py``, which says what it does."""

from taskptq.cli.test import main

if __name__ == '__main__':
    main()
