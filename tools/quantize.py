"""Run ``taskptq/cli/quantize.py``, which says what it does."""

from taskptq.cli.quantize import main

if __name__ == '__main__':
    main()
