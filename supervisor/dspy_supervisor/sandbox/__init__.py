"""Walls around a task: what a process in them may see, and the kernel's means that they are built of.

Nothing here decides who is put behind them; cell.py and warden.py do.
"""
