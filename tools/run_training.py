"""Run ``taskptq/cli/bench_training.py``, which says what it does."""

from taskptq.cli.bench_training import main

if __name__ == '__main__':
    main()
