"""Run ``taskptq/cli/detr_report.py``, which says what it does."""

from taskptq.cli.detr_report import main

if __name__ == '__main__':
    main()
