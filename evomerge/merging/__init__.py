"""How a recipe is built: one streaming pass per tensor into the live model, and its gradient.

`merger` writes candidates and `gradients` differentiates them. `placement` decides where the checkpoints lie,
`parents` reads them from there. `table_store` keeps the tables that methods look up. `methods/` holds the merge
methods, one a file, and `kernels/` the passes that they run in; a kernel imports no method, and a method nothing
else of this room.
"""
