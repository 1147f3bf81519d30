"""Gradient steps on a live model: what the training operators are made of.

corpus      files of texts as rows of tokens
overlap     training texts that hold a task's documents
losses      divergences between a teacher's and a student's next tokens
teachers    teachers' answers, live or kept on disk
texts       texts that teachers and students write
lora        low-rank adapters
forward     what a model makes of rows, and what it is set to for training
loop        the optimizer and its budgets
files       tensors on disk, written whole or not at all
"""
