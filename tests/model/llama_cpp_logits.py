"""Not a test: runs llama.cpp (llama-cpp-python) in a process of its own, because it brings its own threads.

    python llama_cpp_logits.py MODEL.gguf OUT.npy ID ID ...      OUT: logits of every token, (tokens, vocab) float32

Everything that can be float32 is: the KV cache too, and no flash attention. What is left is llama.cpp's int8 activations.
"""

import ctypes
import sys

import llama_cpp
import numpy as np
from numpy.typing import NDArray

F32 = 0  # ggml type
ERROR = 4  # ggml log level


@llama_cpp.llama_log_callback
def log(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def logits(path: str, ids: list[int]) -> NDArray[np.float32]:
    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_load_model_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit("llama.cpp does not load the file")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = len(ids)
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = F32
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_new_context_with_model(model, options)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(len(ids))]
    return np.stack(rows)


if __name__ == "__main__":
    np.save(sys.argv[2], logits(sys.argv[1], [int(word) for word in sys.argv[3:]]))
