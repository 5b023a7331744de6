"""Run ``taskptq/cli/collect.py``, which says what it does."""

from taskptq.cli.collect import main

if __name__ == '__main__':
    main()
