"""What quantization covers of the hosts' own configs, measured one by one."""
