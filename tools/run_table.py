"""Run ``taskptq/cli/bench.py``, which says what it does."""

from taskptq.cli.bench import main

if __name__ == '__main__':
    main()
