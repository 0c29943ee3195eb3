"""The command line, and the composition root: here settings become objects and objects are put together.

One file per command. Heavy imports happen inside the commands, so that help answers at once.
"""
