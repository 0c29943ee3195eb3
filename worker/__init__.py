"""The inside of the sandbox: boot, the request loop, handlers and their Context.

Runs in the worker's own process and imports core, the standard library and msgpack only. What a worker is seen
from outside (directories, launch, lifecycle, supervision) is in `sandbox/`.
"""
