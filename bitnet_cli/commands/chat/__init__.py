"""The chat of `bitnet run`. docs/chat.md describes it.

talk.py       the conversation: what is typed -> answers on stdout
reader.py     where lines come from: an editor on a terminal, or a pipe
commands.py   `/help`, `/save`, ...;  files.py: saved chats
markdown.py   Markdown on a terminal while it is being written
terminal.py   Ctrl-C during an answer, plain output, width
"""
