"""Pretrain TuxNano: `python -m pretrain --help`."""

from .cli import main

main()
