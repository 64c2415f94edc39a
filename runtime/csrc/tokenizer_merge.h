// tokenizer_merge.h: byte-pair encoding of one stretch of text, in O(n log n) time.
#ifndef ATTAR_TOKENIZER_MERGE_H
#define ATTAR_TOKENIZER_MERGE_H

#include "tokenizer_vocab.h"

// One unit of text, linked to its neighbours by index (-1 at the ends). Merging grows the left of two and drops the
// right.
typedef struct {
    int32_t id, prev, next;
    uint32_t start, size;  // bytes of the text; size 0: dropped
    bool fixed;            // a byte or unknown token, which never merges
} merge_symbol;

// A pair that may merge. Lowest key first, then lowest id, then leftmost.
typedef struct {
    uint64_t key;
    int32_t id, left;  // result, and index of the left symbol
} merge_candidate;

// Working memory, grown to the longest stretch and used again for the next. Start from zeros; free the two pointers.
typedef struct {
    merge_symbol *symbols;  // [n_symbols]
    merge_candidate *heap;  // [n_candidates], a binary heap
    size_t n_symbols, n_candidates, capacity;
} merge_scratch;

// Tokens of text [length], left in scratch->symbols: walk from index 0 along `next`. length < 2^30.
// Byte-level: text is one word. SentencePiece: text has spaces, no U+2581.
attar_status tokenizer_merge(const attar_tokenizer *t, const char *text, size_t length, merge_scratch *scratch,
                             attar_error *error);

#endif
