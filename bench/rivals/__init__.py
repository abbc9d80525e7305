"""Other ways to hand a task to another process, each set up as its manual recommends.

A rival lives in .venvs/rivals (bench/rivals/setup makes it), so its module can be imported only there; what the rest of
bench must know of each is here. Servers are started in the measurement's own folder, on unix sockets, and ended by
process id.
"""

from __future__ import annotations

from collections.abc import Mapping

MODULES: Mapping[str, str] = {
    "python-loop": "folder_loop:InotifySimple",
    "pyinotify-loop": "folder_loop:Pyinotify",
    "process-pool": "process_pool:ProcessPool",
    "huey-redis": "huey_redis:HueyRedis",
    "huey-sqlite": "huey_sqlite:HueySqlite",
    "celery": "celery_redis:CeleryRedis",
    "rq": "rq_redis:RqRedis",
    "dramatiq": "dramatiq_redis:DramatiqRedis",
    "hyperqueue": "hyperqueue_local:HyperQueue",
    "task-spooler": "task_spooler:TaskSpooler",
    "litequeue": "litequeue_loop:LiteQueueLoop",
}
QUICK = ("python-loop", "process-pool", "huey-redis", "celery", "rq")  #: the yardsticks of a goal, and the best peer
DURABLE = ("python-loop", "huey-redis", "huey-sqlite", "celery")  #: can sync each task
FOLDER = ("python-loop", "pyinotify-loop", "huey-sqlite", "litequeue")  #: depend on the folder's filesystem
BACKLOGS: Mapping[str, int] = {  #: tasks that one worker drains in one or two seconds on a quiet machine
    "python-loop": 10_000,
    "pyinotify-loop": 10_000,
    "process-pool": 10_000,
    "huey-redis": 4000,
    "huey-sqlite": 2000,
    "celery": 1200,
    "rq": 400,
    "dramatiq": 2000,
    "hyperqueue": 500,
    "task-spooler": 300,
    "litequeue": 600,
}
