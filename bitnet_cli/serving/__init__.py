"""The server behind `bitnet serve`, in the order in which a request meets it.

guard.py      who may ask, and how much: Host, Origin, keys, sizes, times; request ids
app.py        routes: which function answers what
fields.py     values of a JSON body, each checked
schema.py     a request -> texts to write (jobs.Job), with chat.py for messages, tools and thoughts, forms.py for the form of the answer
models.py     the models of this server: loaded when asked for, unloaded when idle or short of memory
worker.py     the one thread that computes; what it writes comes back as events (jobs.py)
answers.py    events -> bodies of OpenAI's chat and text completions, whole or as chunks
responses.py  the same for /v1/responses; anthropic.py for Anthropic's /v1/messages
stream.py     server-sent events; what happens when the client goes or does not read
server.py     sockets, signals, drain
page/         the page at `/`: HTML, CSS and JavaScript as they are
"""
