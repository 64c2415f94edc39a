// tokenizer_vocab.h: the tables of a tokenizer, built once from GGUF metadata and never changed.
//
// Pieces are kept as the bytes they stand for in text (a byte-level "Ġthe" or a SentencePiece "▁the" is " the"), end
// to end in one buffer; `piece_slots` finds an id by those bytes. Control tokens are not in that table, so no text can
// merge into one.
#ifndef ATTAR_TOKENIZER_VOCAB_H
#define ATTAR_TOKENIZER_VOCAB_H

#include "gguf.h"
#include "tokenizer_split.h"

typedef enum {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
} token_type;

enum {
    TOKENIZER_MAX_VOCAB = 1 << 21,        // ids fit 21 bits of a merge key
    TOKENIZER_MAX_PIECE_BYTES = 1 << 10,  // bounds the work of one look-up
};

// A token that text is searched for before anything is merged.
typedef struct {
    const char *text;  // as the user would write it
    uint32_t length;
    int32_t id;
    bool control;  // found only where the caller parses special tokens
} special_token;

// left + right -> id; the index in `merges` is the rank.
typedef struct {
    int32_t left, right, id;
} merge_rule;

struct attar_tokenizer {
    int32_t n_vocab;
    int32_t bos, eos, unknown;  // -1 where the file names none
    bool add_bos, add_eos;
    char *text;         // [offsets[n_vocab]]
    uint32_t *offsets;  // [n_vocab + 1]
    uint8_t *types;     // [n_vocab] token_type
    bool *ends;         // [n_vocab] ends a generation
    int32_t byte_ids[256];
    int32_t *piece_slots;  // [piece_mask + 1] open addressing, -1 is free
    uint32_t piece_mask;
    uint32_t max_piece_bytes;
    special_token *specials;  // [n_specials] sorted by text
    uint32_t n_specials;
    char *special_text;

    // byte-level BPE
    bool byte_level;
    split_rule split;
    bool whole_words_first;  // a word that is a piece is not merged (Llama 3)
    merge_rule *merges;      // [n_merges] best first
    uint32_t n_merges;
    int32_t *merge_slots;  // [merge_mask + 1] by (left, right), -1 is free
    uint32_t merge_mask;

    // SentencePiece BPE
    bool add_space_prefix;
    bool tie_by_id;     // see tokenizer_merge.c
    uint32_t *ranks;    // [n_vocab] by score, 0 best
    uint16_t *n_chars;  // [n_vocab] characters of each piece
};

static inline const char *piece_text(const attar_tokenizer *t, int32_t id) { return t->text + t->offsets[id]; }
static inline uint32_t piece_bytes(const attar_tokenizer *t, int32_t id) { return t->offsets[id + 1] - t->offsets[id]; }

// The id of the piece spelled by these bytes, -1 if there is none.
int32_t tokenizer_find_piece(const attar_tokenizer *t, const char *bytes, size_t length);
// The index in `merges` of a pair, -1 if it does not merge.
int32_t tokenizer_find_merge(const attar_tokenizer *t, int32_t left, int32_t right);
// The longest special token that text[0 .. length) begins with, NULL if none.
const special_token *tokenizer_match_special(const attar_tokenizer *t, const char *text, size_t length);

// Fills a zeroed tokenizer in this order; on failure the caller frees it.
attar_status tokenizer_read_pieces(attar_tokenizer *t, const gguf_file *file, attar_error *error);
attar_status tokenizer_read_settings(attar_tokenizer *t, const gguf_file *file, attar_error *error);
attar_status tokenizer_build_pieces(attar_tokenizer *t, attar_error *error);
attar_status tokenizer_read_merges(attar_tokenizer *t, const gguf_file *file, attar_error *error);
attar_status tokenizer_read_scores(attar_tokenizer *t, const gguf_file *file, attar_error *error);
attar_status tokenizer_build_specials(attar_tokenizer *t, attar_error *error);

// The bytes that a byte-level piece spells, at most `length` of them; 0 if a character is not in GPT-2's table.
size_t tokenizer_spelled_bytes(const char *piece, size_t length, char *bytes);

#endif
