"""Gradient steps on a live model: the parts that training operators are made of.

settings    what a training can be asked for
corpus      files of texts as rows of tokens
overlap     training texts that hold a task's documents
losses      divergences between a teacher's and a student's next tokens
forward     what a model makes of rows, and how it is set for training
teachers    teachers' answers, live or kept on disk
texts       texts that teachers write
lessons     rows and answers, by domain
lora        low-rank adapters
weights     what is trained: adapters, or all weights
loop        the optimizer and its budgets
healing     one training from beginning to end

A module here takes plain values, not an operator's options, and imports no operator.
"""
