"""One file per noun; each offers `routes()`, and `app.py` mounts them below /api and /api/v1."""
