"""Who runs a request, and when: ring, placement, pins, lanes, and `create_gateway_router()`.

A user's worker is chosen once (`ring.py`, `placement.py`) and then remembered for ever (`directory.py`); what runs next is
decided in `lanes.py`. How a worker is kept alive is in `sandbox/`; HTTP is in `gateway/`.
"""
