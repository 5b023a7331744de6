"""Run ``taskptq/cli/export.py``, which says what it does."""

from taskptq.cli.export import main

if __name__ == '__main__':
    main()
