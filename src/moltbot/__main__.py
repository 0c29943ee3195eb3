"""`python -m moltbot` is the `moltbot` command."""

from moltbot.cli.main import main

if __name__ == "__main__":
    main()
