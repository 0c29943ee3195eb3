"""The edge: one port for everything, and the only place that knows HTTP.

`app.py` puts the routes together, `server.py` gives them a port and a life. Which status an error becomes is in
`problems.py`. Who runs a request is the router's business.
"""
