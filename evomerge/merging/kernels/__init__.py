"""The passes that merge methods run in, and the tables that they look up. Knows no file and no method by name.

`steps`, `masks`, `scalars` and `kernel` are what methods are written with: they import no torch. `passes` streams
one tensor through `blocks`, eager or by way of `compiling`; `arguments` and `layouts` say what a pass is given.
`tables` lists the kinds of table, and `order_statistics`, `row_ranks`, `dot_products` and `importance` compute
them.
"""
