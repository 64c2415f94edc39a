// tokenizer.h: builds a tokenizer from a GGUF's `tokenizer.ggml.*` metadata. Public calls are in attar.h.
//
// Models: "llama" (SentencePiece-style BPE over pieces with scores and byte fallback; Gemma) and "gpt2" (byte-level BPE
// with a `tokenizer.ggml.pre` splitting rule; SmolLM2, Llama 3).
#ifndef ATTAR_TOKENIZER_H
#define ATTAR_TOKENIZER_H

#include "attar.h"
#include "gguf.h"

attar_status attar_tokenizer_from_gguf(const gguf_file *file, attar_tokenizer **out, attar_error *error);

#endif
