// Both models merge the best adjacent pair until none is left; they differ in what "best" is.
//   byte-level      the rank of the pair in `merges`
//   SentencePiece   the score of the result; of pairs with equal scores the one with the longest left part, then the
//                   longest right part, or, where the file says so, the lowest ids of left and right part. This is the
//                   order in which transformers writes the merges of a tokenizer.json, so ids agree with it also for
//                   pieces that overlap themselves ("hahaha").
#include "tokenizer_merge.h"

#include <stdlib.h>

#include "error.h"
#include "unicode.h"

enum { FIELD_BITS = 21, FIELD_MAX = (1 << FIELD_BITS) - 1 };

static attar_status reserve(merge_scratch *s, size_t n, attar_error *error) {
    if (n <= s->capacity) return ATTAR_OK;
    size_t capacity = s->capacity > 64 ? s->capacity : 64;
    while (capacity < n) capacity *= 2;
    // n - 1 candidates to begin with; each of at most n - 1 merges takes one and adds two.
    merge_symbol *symbols = realloc(s->symbols, capacity * sizeof *symbols);
    if (symbols) s->symbols = symbols;
    merge_candidate *heap = realloc(s->heap, 2 * capacity * sizeof *heap);
    if (heap) s->heap = heap;
    if (!symbols || !heap)
        return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for a text of %zu characters without a break", n);
    s->capacity = capacity;
    return ATTAR_OK;
}

// --- heap -------------------------------------------------------------------------------------------------------

static bool before(merge_candidate a, merge_candidate b) {
    if (a.key != b.key) return a.key < b.key;
    return a.id != b.id ? a.id < b.id : a.left < b.left;
}

static void heap_push(merge_scratch *s, merge_candidate c) {
    size_t i = s->n_candidates++;
    for (; i > 0 && before(c, s->heap[(i - 1) / 2]); i = (i - 1) / 2) s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
}

static merge_candidate heap_pop(merge_scratch *s) {
    merge_candidate top = s->heap[0], last = s->heap[--s->n_candidates];
    size_t i = 0, n = s->n_candidates;
    for (size_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && before(s->heap[child + 1], s->heap[child])) child++;
        if (!before(s->heap[child], last)) break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

// --- pairs ------------------------------------------------------------------------------------------------------

static uint64_t spm_key(const attar_tokenizer *t, int32_t left, int32_t right, int32_t id) {
    uint64_t first = t->tie_by_id ? (uint64_t)left : (uint64_t)(FIELD_MAX - t->n_chars[left]);
    uint64_t second = t->tie_by_id ? (uint64_t)right : (uint64_t)(FIELD_MAX - t->n_chars[right]);
    return (uint64_t)t->ranks[id] << 2 * FIELD_BITS | first << FIELD_BITS | second;
}

// Adds the pair that starts at symbol `left` to the heap, if it merges into a piece.
static void consider(const attar_tokenizer *t, const char *text, merge_scratch *s, int32_t left) {
    if (left < 0 || s->symbols[left].next < 0) return;
    const merge_symbol *a = &s->symbols[left], *b = &s->symbols[a->next];
    if (a->fixed || b->fixed) return;
    merge_candidate c = {0, -1, left};
    if (t->byte_level) {
        int32_t rank = tokenizer_find_merge(t, a->id, b->id);
        if (rank < 0) return;
        c.key = (uint64_t)rank;
        c.id = t->merges[rank].id;
    } else {
        c.id = tokenizer_find_piece(t, text + a->start, a->size + b->size);
        if (c.id < 0) return;
        c.key = spm_key(t, a->id, b->id, c.id);
    }
    heap_push(s, c);
}

// Whether a candidate still describes the symbols it was made for. A pair whose border has moved inside the same text
// still counts if it makes the same piece, as in tokenizers.
static bool is_current(const attar_tokenizer *t, const merge_scratch *s, merge_candidate c) {
    const merge_symbol *a = &s->symbols[c.left];
    if (a->size == 0 || a->next < 0) return false;
    const merge_symbol *b = &s->symbols[a->next];
    if (a->size + b->size != piece_bytes(t, c.id) || a->fixed || b->fixed) return false;
    return !t->byte_level || tokenizer_find_merge(t, a->id, b->id) >= 0;
}

static void merge_all(const attar_tokenizer *t, const char *text, merge_scratch *s) {
    s->n_candidates = 0;
    for (int32_t i = 0; i < (int32_t)s->n_symbols; i++) consider(t, text, s, i);
    while (s->n_candidates > 0) {
        merge_candidate c = heap_pop(s);
        if (!is_current(t, s, c)) continue;
        merge_symbol *a = &s->symbols[c.left], *b = &s->symbols[a->next];
        a->id = c.id;
        a->size += b->size;
        b->size = 0;
        a->next = b->next;
        if (a->next >= 0) s->symbols[a->next].prev = c.left;
        consider(t, text, s, a->prev);
        consider(t, text, s, c.left);
    }
}

// --- symbols to begin with --------------------------------------------------------------------------------------

static void add_symbol(merge_scratch *s, int32_t id, size_t start, size_t size, bool fixed) {
    int32_t index = (int32_t)s->n_symbols++;
    s->symbols[index] = (merge_symbol){id, index - 1, -1, (uint32_t)start, (uint32_t)size, fixed};
    if (index > 0) s->symbols[index - 1].next = index;
}

// One symbol per byte; bytes that the vocabulary lacks are left out, as in tokenizers.
static void split_bytes(const attar_tokenizer *t, const char *text, size_t length, merge_scratch *s) {
    for (size_t i = 0; i < length; i++) {
        int32_t id = t->byte_ids[(unsigned char)text[i]];
        if (id >= 0) add_symbol(s, id, i, 1, false);
    }
}

static bool has_bytes(const attar_tokenizer *t, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (t->byte_ids[(unsigned char)bytes[i]] < 0) return false;
    }
    return true;
}

// One symbol per character; characters that the vocabulary lacks become byte tokens, and runs of characters whose bytes
// it lacks too become one unknown token.
static void split_chars(const attar_tokenizer *t, const char *text, size_t length, merge_scratch *s) {
    bool unknown_run = false;
    for (size_t at = 0, used = 0; at < length; at += used) {
        attar_utf8_decode(text + at, length - at, &used);
        int32_t id = tokenizer_find_piece(t, text + at, used);
        if (id >= 0) {
            add_symbol(s, id, at, used, false);
            unknown_run = false;
        } else if (has_bytes(t, text + at, used)) {
            for (size_t i = at; i < at + used; i++) add_symbol(s, t->byte_ids[(unsigned char)text[i]], i, 1, true);
            unknown_run = false;
        } else if (unknown_run) {
            s->symbols[s->n_symbols - 1].size += (uint32_t)used;
        } else {
            add_symbol(s, t->unknown, at, used, true);
            unknown_run = true;
        }
    }
}

attar_status tokenizer_merge(const attar_tokenizer *t, const char *text, size_t length, merge_scratch *s,
                             attar_error *error) {
    attar_status status = reserve(s, length, error);
    s->n_symbols = 0;
    if (status != ATTAR_OK) return status;
    int32_t whole = t->whole_words_first ? tokenizer_find_piece(t, text, length) : -1;
    if (whole >= 0) {
        add_symbol(s, whole, 0, length, true);
        return ATTAR_OK;
    }
    if (t->byte_level)
        split_bytes(t, text, length, s);
    else
        split_chars(t, text, length, s);
    merge_all(t, text, s);
    return ATTAR_OK;
}
