"""Run ``taskptq/cli/coverage.py``, which says what it does."""

from taskptq.cli.coverage import main

if __name__ == '__main__':
    main()
