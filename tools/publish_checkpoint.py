"""Run ``taskptq/cli/publish.py``, which says what it does."""

from taskptq.cli.publish import main

if __name__ == '__main__':
    main()
