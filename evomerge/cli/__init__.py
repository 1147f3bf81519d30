"""The command line, one file a group of commands.

A command imports what it runs inside its body, so that help, refusals and quick commands answer at once.
"""
