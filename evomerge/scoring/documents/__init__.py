"""The texts of the tasks that ship with evomerge: plain values made without lm-eval, torch or a network.

Each document is a pure function of its options, its seed and its text. `fitness/tasks/*.py` hands them to lm-eval.
"""
