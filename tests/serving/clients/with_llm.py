"""Simon Willison's llm, by the file that tells its OpenAI plug-in of other servers: argv has the address and a folder for the file."""

import os
import sys
from pathlib import Path

url, folder = sys.argv[1], Path(sys.argv[2])
os.environ["LLM_USER_PATH"] = str(folder)
(folder / "extra-openai-models.yaml").write_text(f"- model_id: tiny\n  model_name: tiny\n  api_base: {url}/v1\n  can_stream: true\n")

import llm  # noqa: E402 -- it reads the folder when it is imported

model = llm.get_model("tiny")
model.key = "none"
whole = model.prompt("Hello", stream=False, max_tokens=6, seed=1).text()
assert whole and "".join(model.prompt("Hello", max_tokens=6, seed=1)) == whole
