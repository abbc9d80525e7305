"""A world in numbers to judge policies in: the plant, its scenarios, the judge, the replay of recorded windows, pictures.

It needs numpy and Numba, so nothing but the command `simulate` and bench/ imports it.
"""
