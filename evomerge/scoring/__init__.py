"""lm-eval's numbers for a live model: tasks are built and tokenized once, then scored as often as asked.

This is the one room that imports lm_eval. Import each name from its module; importing this package, `reports` or
`fitness` loads neither torch nor lm-eval.

    fitness, objective       which tasks a search climbs, and what their scores come to
    reports                  what a scorer is asked for and what it answers
    scorer                   holds the rest together: `Scorer.score` and `Scorer.backward`
    tasks, task_names, rendering   lm-eval's own Task objects, found, prompted and taken apart into documents
    encoder, tokenized       requests as token ids, by lm-eval's own code
    engine, answers          puts requests to the model, and does not ask again for answers that are kept
    generate, endings, generation_options   generation requests; log-likelihood requests go to `forward`
    metrics, smooth_metrics  answers become lm-eval's per-document metrics, and those that a search can climb
    backward, sloped_metrics   the gradient of the fitness in the model's weights
    lm_eval_parts, quiet     parts of lm-eval that it does not document; its silence and its seeds
    forward/                 tokens through a model; knows no lm-eval
    documents/               the texts of the tasks that ship with evomerge

Nothing that is derived from a model's weights outlives a call.
"""
