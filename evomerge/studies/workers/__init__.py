"""Who evaluates candidates: this process, or Ray's workers. Both are a `jobs.Pool`.

- `resources.py`: the experiment's `workers`, and what `auto` means on a machine;
- `jobs.py`: what a pool is asked for, and what comes back;
- `inline_pool.py`, `ray_pool.py`: the two pools;
- `opening.py`: the choice between them.
"""
