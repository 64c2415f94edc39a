// The public tokenizer calls: special tokens are cut out of the text first, what lies between is merged.
#include "tokenizer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "tokenizer_merge.h"
#include "tokenizer_vocab.h"

enum { MAX_TEXT_BYTES = 1 << 30 };

attar_status attar_tokenizer_from_gguf(const gguf_file *file, attar_tokenizer **out, attar_error *error) {
    *out = NULL;
    attar_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for a tokenizer");
    attar_status status = tokenizer_read_pieces(t, file, error);
    if (status == ATTAR_OK) status = tokenizer_read_settings(t, file, error);
    if (status == ATTAR_OK) status = tokenizer_build_pieces(t, error);
    if (status == ATTAR_OK)
        status = t->byte_level ? tokenizer_read_merges(t, file, error) : tokenizer_read_scores(t, file, error);
    if (status == ATTAR_OK) status = tokenizer_build_specials(t, error);
    if (status == ATTAR_OK)
        *out = t;
    else
        attar_tokenizer_free(t);
    return status;
}

void attar_tokenizer_free(attar_tokenizer *t) {
    if (!t) return;
    void *const owned[] = {t->text,         t->offsets, t->types,       t->ends,  t->piece_slots, t->specials,
                           t->special_text, t->merges,  t->merge_slots, t->ranks, t->n_chars,     t};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) free(owned[i]);
}

// --- encoding ---------------------------------------------------------------------------------------------------

// One call of attar_tokenizer_encode.
typedef struct {
    const attar_tokenizer *tokenizer;
    int32_t *ids;  // [capacity]
    size_t capacity, count;
    merge_scratch scratch;
    char *spaced;  // SentencePiece: the stretch with a space for every U+2581
    attar_error *error;
} encoding;

static void emit(encoding *e, int32_t id) {
    if (e->count < e->capacity) e->ids[e->count] = id;
    e->count++;
}

static attar_status emit_merged(encoding *e, const char *text, size_t length) {
    attar_status status = tokenizer_merge(e->tokenizer, text, length, &e->scratch, e->error);
    if (status != ATTAR_OK || e->scratch.n_symbols == 0) return status;
    for (int32_t i = 0; i >= 0; i = e->scratch.symbols[i].next) emit(e, e->scratch.symbols[i].id);
    return ATTAR_OK;
}

static attar_status encode_words(encoding *e, const char *text, size_t length) {
    splitter words = {e->tokenizer->split, text, length, 0, 0};
    attar_status status = ATTAR_OK;
    for (size_t start = 0, size; status == ATTAR_OK && (size = attar_split_next(&words)) > 0; start += size)
        status = emit_merged(e, text + start, size);
    return status;
}

static attar_status encode_spaced(encoding *e, const char *text, size_t length) {
    size_t n = 0;
    if (e->tokenizer->add_space_prefix) e->spaced[n++] = ' ';
    for (size_t at = 0; at < length;) {
        bool mark = length - at >= 3 && memcmp(text + at, "\xE2\x96\x81", 3) == 0;
        e->spaced[n++] = mark ? ' ' : text[at];
        at += mark ? 3 : 1;
    }
    return emit_merged(e, e->spaced, n);
}

// Encodes text without special tokens in it.
static attar_status encode_plain(encoding *e, const char *text, size_t length) {
    if (length == 0) return ATTAR_OK;
    return e->tokenizer->byte_level ? encode_words(e, text, length) : encode_spaced(e, text, length);
}

static attar_status encode_text(encoding *e, const char *text, size_t length, bool parse_special) {
    size_t start = 0;
    for (size_t at = 0; at < length;) {
        const special_token *special = tokenizer_match_special(e->tokenizer, text + at, length - at);
        size_t end = at + (special ? special->length : 1);
        if (special && (parse_special || !special->control)) {
            attar_status status = encode_plain(e, text + start, at - start);
            if (status != ATTAR_OK) return status;
            emit(e, special->id);
            start = end;
        }
        at = end;
    }
    return encode_plain(e, text + start, length - start);
}

attar_status attar_tokenizer_encode(const attar_tokenizer *t, const char *text, size_t length, bool add_special,
                                    bool parse_special, int32_t *ids, size_t capacity, size_t *count,
                                    attar_error *error) {
    *count = 0;
    if (length >= MAX_TEXT_BYTES)
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "text must be shorter than %d bytes, got %zu", MAX_TEXT_BYTES,
                          length);
    encoding e = {.tokenizer = t, .ids = ids, .capacity = capacity, .error = error};
    attar_status status = ATTAR_OK;
    if (!t->byte_level) {
        e.spaced = malloc(length + 1);
        if (!e.spaced) return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for a text of %zu bytes", length);
    }
    if (add_special && t->add_bos && t->bos >= 0) emit(&e, t->bos);
    status = encode_text(&e, text, length, parse_special);
    if (add_special && t->add_eos && t->eos >= 0) emit(&e, t->eos);
    free(e.spaced);
    free(e.scratch.symbols);
    free(e.scratch.heap);
    if (status != ATTAR_OK) return status;
    *count = e.count;
    if (e.count > capacity)
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "the text needs %zu tokens, room for %zu was given", e.count,
                          capacity);
    return ATTAR_OK;
}

// --- decoding ---------------------------------------------------------------------------------------------------

const char *attar_tokenizer_piece(const attar_tokenizer *t, int32_t id, bool special, size_t *length) {
    *length = 0;
    if (id < 0 || id >= t->n_vocab) return NULL;
    bool control = t->types[id] == TOKEN_CONTROL || t->types[id] == TOKEN_UNKNOWN;
    if (special || !control) *length = piece_bytes(t, id);
    return piece_text(t, id);
}

bool attar_tokenizer_is_end(const attar_tokenizer *t, int32_t id) { return id >= 0 && id < t->n_vocab && t->ends[id]; }
