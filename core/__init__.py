"""What every layer shares: words (messages, errors, events), bytes (framing, session) and habits (clock, service).

Nothing here knows HTTP, processes or databases. Imports the standard library and msgpack only, because
the inside of a worker is built on it too.
"""
