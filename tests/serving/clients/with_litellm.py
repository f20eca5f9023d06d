"""litellm against a server: argv has its address."""

import sys

import litellm

litellm.suppress_debug_info = True
where = {"model": "openai/tiny", "api_base": sys.argv[1] + "/v1", "api_key": "none"}
asked = {**where, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "seed": 1}
answer = litellm.completion(**asked)
assert answer.usage.completion_tokens == 6
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
assert "".join(pieces) == answer.choices[0].message.content
try:
    litellm.completion(**{**asked, "messages": [{"role": "user", "content": "many words " * 2000}]})
    raise AssertionError("a prompt that does not fit was accepted")
except litellm.ContextWindowExceededError:
    pass
