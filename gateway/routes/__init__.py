"""One file per noun; each offers its part of the table, `ROUTES`, and `app.py` mounts them below /api and /api/v1."""
