"""The command line: one file for each group of commands.

A command's file ends with `COMMANDS`, the functions that `main` registers, in the order of the help. A command
imports what it runs inside its body, so that help, refusals and quick commands answer at once.
"""
