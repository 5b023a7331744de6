"""The console command ``taskptq`` and its parts."""
