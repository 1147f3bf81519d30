"""The documents of the tasks that ship with evomerge, made on the spot."""
