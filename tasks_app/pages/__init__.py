"""The pages of the tasks: is it healthy, what happened, what about this one.

shell        what all pages have in common: who may see them, their live parts
overview     what is going on now, and what became of the last hour's tasks
tasks        the list
task         one task: what it was given, what became of it, and the buttons
tracebacks   a traceback as one reads it
"""
