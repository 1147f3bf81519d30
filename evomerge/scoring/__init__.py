"""lm-eval's numbers for a live model: tasks are built and tokenized once, then scored as often as asked.

This is the one room that imports lm_eval. Import each name from its module; importing this package, `reports` or
`fitness` loads neither torch nor lm-eval.

    fitness, objective   which tasks a search climbs, and what their scores come to
    reports              what a scorer is asked for and what it answers
    scorer               holds the rest together: `Scorer.score` and `Scorer.backward`
    tasks                lm-eval's own Task objects, found, prompted and taken apart into documents
    encoder              tokens, by lm-eval's own code
    engine, answers      puts requests to the model, and does not ask again for answers that are kept
    generate             generation requests; log-likelihood requests go to `forward`
    metrics              answers become lm-eval's per-document metrics; `smooth_metrics` has those to climb
    backward             the gradient of the fitness in the model's weights
    forward/             tokens through a model; knows no lm-eval
    documents/           the texts of the tasks that ship with evomerge

Nothing that is derived from a model's weights outlives a call.
"""
