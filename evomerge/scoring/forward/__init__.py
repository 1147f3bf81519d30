"""Token ids through a model, none twice: this folder knows tensors and transformers models, but no lm-eval.

requests        what is asked of a model: a log-likelihood, or a generated text
tree, trunks, layouts, pass_plan, prefixes   which tokens are forwarded in which batch; numpy alone
costs, budgets  what a batch costs, and how large it may be
masks, caches, admission   tree masks, key-value caches, and whether a model heeds them
walk            batches of a plan through a model
scored_groups, packed      log-likelihood requests
decode          greedy answers
head, differentiable       log-probabilities from hidden states, and their gradients
"""
