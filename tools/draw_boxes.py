"""Run ``taskptq/cli/draw_boxes.py``, which says what it does."""

from taskptq.cli.draw_boxes import main

if __name__ == '__main__':
    main()
