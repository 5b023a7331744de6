"""``python -m taskptq`` is the console command ``taskptq``."""

from taskptq.cli.main import main

if __name__ == '__main__':
    main()
