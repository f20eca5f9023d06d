"""Chat formats: messages -> token ids, in the way that a model was trained on.

templates.py   the built-in formats, as data; messages -> ids, so that text of a message never becomes a control token
choice.py      which format a file gets, and why
jinja.py       a template in Jinja, rendered in a process of its own (jinja_child.py)
"""
