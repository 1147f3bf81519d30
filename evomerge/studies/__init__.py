"""A search on models: the experiment, its folder and log, and its course from plan to second phase."""
