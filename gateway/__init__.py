"""The edge: one port for everything, and the only place that knows HTTP. Who runs a request is the router's business.

server        a port and a life: starts the router, listens, stops in order
bytes         listening (connections), tls (certificates), protocol and heads (what is HTTP at all)
checks        edge (the order of all of them): origins, auth, access, rates, live, idempotency; a request's facts: visit
kept          credentials (tokens, links, sessions), outcomes (answers to keyed requests)
answers       app (the table of routes), routes/*, bodies (JSON), problems (errors), access_log, readiness
"""
