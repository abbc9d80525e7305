"""What runs once per task or event, compiled: the scanner, the claim, the watcher, the shared page, the ids, and the
start of programs.

Nothing is imported or done here: ``from dspy_fastpath.envelope import scan`` and so on. No policy, no settings and no
errors of the supervisor's own live below this folder; a plain twin of each module is in tests/reference/.
"""
