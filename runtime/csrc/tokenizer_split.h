// tokenizer_split.h: cuts text into the words inside which byte-level BPE merges.
//
// Each rule is a regular expression of the model's tokenizer.json, written out by hand: linear in the text, no
// backtracking. The Python side of the same rules is engine/_vocabulary_build.py.
#ifndef ATTAR_TOKENIZER_SPLIT_H
#define ATTAR_TOKENIZER_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

typedef enum {
    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    SPLIT_GPT2,
    // Each \p{N} alone; GPT-2's rule between them.
    SPLIT_SMOLLM,
    // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
    // \s+(?!\S)|\s+
    SPLIT_LLAMA3,
    // Llama 3's with \p{N} in place of \p{N}{1,3}.
    SPLIT_QWEN2,
} split_rule;

// The rule that a `tokenizer.ggml.pre` names; false if attar has none of that name.
bool attar_split_rule(const char *name, size_t length, split_rule *out);

typedef struct {
    split_rule rule;
    const char *text;
    size_t length;  // bytes
    size_t at;      // bytes already given out; start with 0
    size_t limit;   // end of the stretch without digits around `at` (SPLIT_SMOLLM); start with 0
} splitter;

// Bytes of the next word, which starts at text[at] as it was before the call; 0 at the end.
size_t attar_split_next(splitter *s);

#endif
