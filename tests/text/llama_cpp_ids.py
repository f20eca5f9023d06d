"""A program of its own: ids that llama.cpp's tokenizer gives. `python llama_cpp_ids.py VOCABULARY.gguf STRINGS.json IDS.json`.

Both files hold lists: of strings, and of lists of ids. BOS is not added; names of control tokens in a string are text. Llama-cpp-python
is not imported into the test process, because it keeps its threads and its log.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp


def main(vocabulary: str, strings: str, out: str, special: str = "") -> None:
    model = llama_cpp.Llama(vocabulary, vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    found = []
    for text in json.loads(Path(strings).read_text()):
        data = text.encode()
        room = len(data) * 2 + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocab, ctypes.c_char_p(data), len(data), ids, room, False, special == "special")
        assert count >= 0, (count, text)
        found.append(ids[:count])
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
