"""A supervisor under a mixed load and random kills for as long as is asked for, and whether anything grows.

::

    __main__    the run and its report
    load        what is put, by whom, and what must become of it
    chaos       who is killed, and when
    watch       what is measured, and when a series counts as flat
    leaks       planted leaks, which the rig must find
"""
