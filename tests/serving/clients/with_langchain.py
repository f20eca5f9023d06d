"""LangChain's ChatOpenAI against a server: argv has its address."""

import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

chat = ChatOpenAI(base_url=sys.argv[1] + "/v1", api_key="none", model="tiny", max_tokens=200, seed=1, max_retries=0)


class Animal(BaseModel):
    kind: Literal["cat", "dog"]


@tool
def legs(kind: Literal["cat", "dog"]) -> int:
    """Legs of an animal."""
    return 4


answer = chat.invoke("Hello", max_tokens=6)
assert answer.content and answer.usage_metadata["output_tokens"] == 6
assert "".join(chunk.content for chunk in chat.stream("Hello", max_tokens=6)) == answer.content
assert chat.with_structured_output(Animal, method="json_schema").invoke("An animal").kind in ("cat", "dog")
called = chat.bind_tools([legs], tool_choice="legs", parallel_tool_calls=False).invoke("An animal")
assert called.tool_calls[0]["name"] == "legs" and called.tool_calls[0]["args"]["kind"] in ("cat", "dog")
