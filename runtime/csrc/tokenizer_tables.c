// Builds the look-up tables of a tokenizer: pieces by text, merges by pair, ranks by score, special tokens by prefix.
#include "tokenizer_vocab.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "unicode.h"

static attar_status out_of_memory(attar_error *error, const char *what) {
    return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for the tokenizer's %s", what);
}

static const gguf_kv *find_array(const gguf_file *file, const char *key, gguf_type element) {
    const gguf_kv *kv = gguf_find(file, key);
    return kv && kv->type == GGUF_ARRAY && kv->element_type == element ? kv : NULL;
}

// A table of 2^k slots, at most half full once it holds n entries; every slot free (-1).
static int32_t *make_slots(uint32_t n, uint32_t *mask) {
    uint32_t size = 16;
    while (size < 2 * n) size *= 2;
    int32_t *slots = malloc(size * sizeof *slots);
    if (slots) memset(slots, 0xFF, size * sizeof *slots);
    *mask = size - 1;
    return slots;
}

// --- pieces by text ---------------------------------------------------------------------------------------------

// FNV-1a, folded so that the low bits depend on all.
static uint32_t hash_bytes(const char *bytes, size_t length) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < length; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return (uint32_t)(h ^ h >> 32);
}

// The slot that holds these bytes, or the free one where they belong.
static uint32_t piece_slot(const attar_tokenizer *t, const char *bytes, size_t length) {
    uint32_t slot = hash_bytes(bytes, length) & t->piece_mask;
    for (; t->piece_slots[slot] >= 0; slot = (slot + 1) & t->piece_mask) {
        int32_t id = t->piece_slots[slot];
        if (piece_bytes(t, id) == length && memcmp(piece_text(t, id), bytes, length) == 0) break;
    }
    return slot;
}

int32_t tokenizer_find_piece(const attar_tokenizer *t, const char *bytes, size_t length) {
    if (length == 0 || length > t->max_piece_bytes) return -1;
    return t->piece_slots[piece_slot(t, bytes, length)];
}

// Whether text can become this piece by merging. A SentencePiece user-defined piece is cut out of the text before, but
// for runs of spaces (see spell_special) and single characters.
static bool is_mergeable(const attar_tokenizer *t, int32_t id) {
    uint32_t size = piece_bytes(t, id);
    size_t first = 0;
    if (size == 0 || t->types[id] == TOKEN_NORMAL) return size > 0;
    if (t->byte_level || t->types[id] != TOKEN_USER_DEFINED) return t->types[id] == TOKEN_USER_DEFINED;
    attar_utf8_decode(piece_text(t, id), size, &first);
    return first == size || memchr(piece_text(t, id), ' ', size) != NULL;
}

attar_status tokenizer_build_pieces(attar_tokenizer *t, attar_error *error) {
    t->piece_slots = make_slots((uint32_t)t->n_vocab, &t->piece_mask);
    if (!t->piece_slots) return out_of_memory(error, "pieces");
    for (int32_t id = 0; id < t->n_vocab; id++) {
        if (!is_mergeable(t, id)) continue;
        uint32_t slot = piece_slot(t, piece_text(t, id), piece_bytes(t, id));
        if (t->piece_slots[slot] >= 0)
            return attar_fail(error, ATTAR_ERROR_MODEL,
                              "tokenizer.ggml.tokens must differ, tokens %d and %d are the same", t->piece_slots[slot],
                              id);
        t->piece_slots[slot] = id;
        if (piece_bytes(t, id) > t->max_piece_bytes) t->max_piece_bytes = piece_bytes(t, id);
    }
    if (t->byte_level) {
        for (int32_t byte = 0; byte < 256; byte++) t->byte_ids[byte] = tokenizer_find_piece(t, &(char){(char)byte}, 1);
        return ATTAR_OK;
    }
    int32_t n_bytes = 0;
    for (int32_t byte = 0; byte < 256; byte++) n_bytes += t->byte_ids[byte] >= 0;
    if (n_bytes < 256 && t->unknown < 0)
        return attar_fail(
            error, ATTAR_ERROR_MODEL,
            "a SentencePiece vocabulary needs all 256 byte tokens or an unknown_token_id, got %d byte tokens", n_bytes);
    return ATTAR_OK;
}

// --- merges by pair ---------------------------------------------------------------------------------------------

static uint32_t merge_slot(const attar_tokenizer *t, int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    uint32_t slot = (uint32_t)(h >> 32) & t->merge_mask;
    for (; t->merge_slots[slot] >= 0; slot = (slot + 1) & t->merge_mask) {
        const merge_rule *m = &t->merges[t->merge_slots[slot]];
        if (m->left == left && m->right == right) break;
    }
    return slot;
}

int32_t tokenizer_find_merge(const attar_tokenizer *t, int32_t left, int32_t right) {
    return t->merge_slots[merge_slot(t, left, right)];
}

// Reads "left right"; false if a part, or what they make together, is not a piece.
static bool parse_merge(const attar_tokenizer *t, gguf_string text, merge_rule *out) {
    char bytes[2 * TOKENIZER_MAX_PIECE_BYTES];
    const char *blank = text.length < sizeof bytes ? memchr(text.data, ' ', (size_t)text.length) : NULL;
    if (!blank) return false;
    size_t left_length = (size_t)(blank - text.data), right_length = (size_t)text.length - left_length - 1;
    size_t left = tokenizer_spelled_bytes(text.data, left_length, bytes);
    size_t right = tokenizer_spelled_bytes(blank + 1, right_length, bytes + left);
    out->left = tokenizer_find_piece(t, bytes, left);
    out->right = tokenizer_find_piece(t, bytes + left, right);
    out->id = tokenizer_find_piece(t, bytes, left + right);
    return out->left >= 0 && out->right >= 0 && out->id >= 0;
}

attar_status tokenizer_read_merges(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    const gguf_kv *kv = find_array(file, "tokenizer.ggml.merges", GGUF_STRING);
    if (!kv || kv->count >= 16 * (uint64_t)TOKENIZER_MAX_VOCAB)
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.merges must be an array of strings");
    t->n_merges = (uint32_t)kv->count;
    t->merges = malloc((t->n_merges + 1) * sizeof *t->merges);
    t->merge_slots = make_slots(t->n_merges, &t->merge_mask);
    if (!t->merges || !t->merge_slots) return out_of_memory(error, "merges");
    const uint8_t *cursor = kv->value;
    for (uint32_t i = 0; i < t->n_merges; i++) {
        gguf_string text = gguf_next_string(&cursor);
        if (!parse_merge(t, text, &t->merges[i]))
            return attar_fail(error, ATTAR_ERROR_MODEL,
                              "tokenizer.ggml.merges must join tokens of the vocabulary, got '%.*s' at index %u",
                              (int)(text.length < 64 ? text.length : 64), text.data, i);
        t->merge_slots[merge_slot(t, t->merges[i].left, t->merges[i].right)] = (int32_t)i;
    }
    return ATTAR_OK;
}

// --- ranks by score ---------------------------------------------------------------------------------------------

typedef struct {
    float score;
    int32_t id;
} scored;

// Best score first, then lowest id: a total order, so qsort's result does not depend on the platform.
static int compare_scored(const void *a, const void *b) {
    const scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static uint16_t count_chars(const char *text, size_t length) {
    uint16_t n = 0;
    for (size_t at = 0, used = 0; at < length; at += used, n++) attar_utf8_decode(text + at, length - at, &used);
    return n;
}

// Equal scores share a rank, unless ties are broken by id.
static void assign_ranks(attar_tokenizer *t, const scored *order) {
    uint32_t rank = 0;
    for (int32_t i = 0; i < t->n_vocab; i++) {
        if (i > 0 && (t->tie_by_id || order[i].score != order[i - 1].score)) rank++;
        t->ranks[order[i].id] = rank;
    }
}

attar_status tokenizer_read_scores(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    const gguf_kv *kv = find_array(file, "tokenizer.ggml.scores", GGUF_F32);
    if (!kv || kv->count != (uint64_t)t->n_vocab)
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.scores must be an array of %d float32", t->n_vocab);
    size_t n = (size_t)t->n_vocab;
    scored *order = malloc(n * sizeof *order);
    t->ranks = malloc(n * sizeof *t->ranks);
    t->n_chars = malloc(n * sizeof *t->n_chars);
    attar_status status = order && t->ranks && t->n_chars ? ATTAR_OK : out_of_memory(error, "scores");
    for (int32_t id = 0; id < t->n_vocab && status == ATTAR_OK; id++) {
        float score = 0;
        memcpy(&score, kv->value + 4 * (size_t)id, 4);
        if (isnan(score))
            status = attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.scores of token %d is not a number", id);
        // Files give user-defined pieces any score; SentencePiece puts them above all others.
        order[id] = (scored){t->types[id] == TOKEN_USER_DEFINED ? 0 : score, id};
        t->n_chars[id] = count_chars(piece_text(t, id), piece_bytes(t, id));
    }
    if (status == ATTAR_OK) {
        qsort(order, n, sizeof *order, compare_scored);
        assign_ranks(t, order);
    }
    free(order);
    return status;
}

// --- special tokens ---------------------------------------------------------------------------------------------

static int compare_specials(const void *a, const void *b) {
    const special_token *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    if (order) return order;
    return x->length != y->length ? (x->length > y->length) - (x->length < y->length)
                                  : (x->id > y->id) - (x->id < y->id);
}

static bool is_special(const attar_tokenizer *t, int32_t id) {
    uint8_t type = t->types[id];
    return (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER_DEFINED) && piece_bytes(t, id) > 0;
}

// Spells a SentencePiece user-defined piece for matching: its spaces are U+2581. Plain spaces in text must not match
// it, because they may merge with what surrounds them.
static size_t spell_special(const attar_tokenizer *t, int32_t id, char *out) {
    bool marks = !t->byte_level && t->types[id] == TOKEN_USER_DEFINED;
    size_t n = 0;
    for (uint32_t i = 0; i < piece_bytes(t, id); i++) {
        char c = piece_text(t, id)[i];
        if (marks && c == ' ') {
            memcpy(out + n, "\xE2\x96\x81", 3);
            n += 3;
        } else {
            out[n++] = c;
        }
    }
    return n;
}

attar_status tokenizer_build_specials(attar_tokenizer *t, attar_error *error) {
    size_t bytes = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        if (!is_special(t, id)) continue;
        t->n_specials++;
        bytes += 3 * (size_t)piece_bytes(t, id);
    }
    t->specials = malloc((t->n_specials + 1) * sizeof *t->specials);
    t->special_text = malloc(bytes + 1);
    if (!t->specials || !t->special_text) return out_of_memory(error, "special tokens");
    char *out = t->special_text;
    uint32_t n = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        if (!is_special(t, id)) continue;
        size_t length = spell_special(t, id, out);
        t->specials[n++] = (special_token){out, (uint32_t)length, id, t->types[id] != TOKEN_USER_DEFINED};
        out += length;
    }
    qsort(t->specials, n, sizeof *t->specials, compare_specials);
    return ATTAR_OK;
}

// First index in [low, high) whose character at `depth` is at least `c` (or above it, if `above`). All entries there
// agree before `depth`, so those that end at it come first.
static uint32_t bound(const attar_tokenizer *t, uint32_t low, uint32_t high, uint32_t depth, unsigned char c,
                      bool above) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const special_token *s = &t->specials[middle];
        int32_t at = s->length > depth ? (unsigned char)s->text[depth] : -1;
        if (at < c || (above && at == c))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const special_token *tokenizer_match_special(const attar_tokenizer *t, const char *text, size_t length) {
    const special_token *found = NULL;
    uint32_t low = 0, high = t->n_specials;
    for (uint32_t depth = 0; depth < length && low < high; depth++) {
        unsigned char c = (unsigned char)text[depth];
        low = bound(t, low, high, depth, c, false);
        high = bound(t, low, high, depth, c, true);
        if (low < high && t->specials[low].length == depth + 1) found = &t->specials[low];
    }
    return found;
}
