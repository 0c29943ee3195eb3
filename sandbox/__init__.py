"""Workers seen from outside: directories, launch, lifecycle, supervision, the pool.

Decisions are pure (`lifecycle.py`, `restart.py`, `health.py`, `launch.py`); processes, sockets and timers are in the thin
modules around them. What runs inside a worker is in `worker/`; which user goes to which worker, in `router/`.
"""
