// Reads tokens, types and settings out of `tokenizer.ggml.*`. The look-up tables are built in tokenizer_tables.c.
#include "tokenizer_vocab.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "unicode.h"

#define SPACE_MARK "\xE2\x96\x81"  // U+2581, SentencePiece's spelling of a space

static bool equals(gguf_string s, const char *text) {
    return s.length == strlen(text) && memcmp(s.data, text, s.length) == 0;
}

// GPT-2's table: a printable byte is spelled by the character of its value; the 68 others, in order, by U+0100 upwards.
static bool is_printable(uint32_t byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

static int32_t spelled_byte(uint32_t code) {
    if (code < 0x100) return is_printable(code) ? (int32_t)code : -1;
    for (uint32_t byte = 0, n = 0x100; byte < 256; byte++) {
        if (!is_printable(byte) && n++ == code) return (int32_t)byte;
    }
    return -1;
}

size_t tokenizer_spelled_bytes(const char *piece, size_t length, char *bytes) {
    size_t n = 0;
    for (size_t at = 0, used = 0; at < length; at += used) {
        int32_t byte = spelled_byte(attar_utf8_decode(piece + at, length - at, &used));
        if (byte < 0) return 0;
        bytes[n++] = (char)byte;
    }
    return n;
}

static int32_t hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The byte that a piece "<0xE3>" stands for, -1 if it is not spelled so.
static int32_t byte_piece(gguf_string piece) {
    if (piece.length != 6 || memcmp(piece.data, "<0x", 3) != 0 || piece.data[5] != '>') return -1;
    int32_t high = hex_digit(piece.data[3]), low = hex_digit(piece.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

// Writes `piece` with U+2581 turned into spaces; returns the bytes written, at most piece.length.
static size_t with_spaces(gguf_string piece, char *out) {
    size_t n = 0;
    for (size_t at = 0; at < piece.length;) {
        bool mark = piece.length - at >= 3 && memcmp(piece.data + at, SPACE_MARK, 3) == 0;
        out[n++] = mark ? ' ' : piece.data[at];
        at += mark ? 3 : 1;
    }
    return n;
}

// Appends what token `id` stands for to t->text and ends it in t->offsets.
static attar_status add_piece(attar_tokenizer *t, int32_t id, gguf_string piece, attar_error *error) {
    char *out = t->text + t->offsets[id];
    size_t n = 0;
    if (piece.length > TOKENIZER_MAX_PIECE_BYTES)
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.tokens: token %d has %" PRIu64 " bytes, at most %d",
                          id, piece.length, TOKENIZER_MAX_PIECE_BYTES);
    token_type type = t->types[id];
    if (type == TOKEN_BYTE && !t->byte_level) {
        int32_t byte = byte_piece(piece);
        if (byte < 0)
            return attar_fail(error, ATTAR_ERROR_MODEL,
                              "tokenizer.ggml.tokens: byte token %d must be spelled <0x00> to <0xFF>", id);
        t->byte_ids[byte] = id;
        out[n++] = (char)byte;
    } else if (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || (t->byte_level && type == TOKEN_USER_DEFINED)) {
        memcpy(out, piece.data, piece.length);
        n = piece.length;
    } else if (t->byte_level) {
        n = tokenizer_spelled_bytes(piece.data, piece.length, out);
        if (n == 0) memcpy(out, piece.data, n = piece.length);
    } else {
        n = with_spaces(piece, out);
    }
    t->offsets[id + 1] = t->offsets[id] + (uint32_t)n;
    return ATTAR_OK;
}

static const gguf_kv *find_array(const gguf_file *file, const char *key, gguf_type element) {
    const gguf_kv *kv = gguf_find(file, key);
    return kv && kv->type == GGUF_ARRAY && kv->element_type == element ? kv : NULL;
}

static attar_status read_types(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    const gguf_kv *kv = find_array(file, "tokenizer.ggml.token_type", GGUF_I32);
    if (!kv && gguf_find(file, "tokenizer.ggml.token_type"))
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.token_type must be an array of int32");
    if (kv && kv->count != (uint64_t)t->n_vocab)
        return attar_fail(error, ATTAR_ERROR_MODEL,
                          "tokenizer.ggml.token_type must have an entry per token, got %" PRIu64 " for %d tokens",
                          kv->count, t->n_vocab);
    for (int32_t id = 0; id < t->n_vocab; id++) {
        uint32_t type = TOKEN_NORMAL;
        if (kv) memcpy(&type, kv->value + 4 * (size_t)id, 4);
        if (type < TOKEN_NORMAL || type > TOKEN_BYTE)
            return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.token_type of token %d must be 1 to 6, got %u",
                              id, type);
        t->types[id] = (uint8_t)type;
    }
    return ATTAR_OK;
}

static attar_status allocate_pieces(attar_tokenizer *t, const gguf_kv *tokens, attar_error *error) {
    uint64_t bytes = 0;
    const uint8_t *cursor = tokens->value;
    for (uint64_t i = 0; i < tokens->count; i++) bytes += gguf_next_string(&cursor).length;
    size_t n = (size_t)tokens->count;
    t->text = bytes < UINT32_MAX ? malloc((size_t)bytes + 1) : NULL;
    t->offsets = calloc(n + 1, sizeof *t->offsets);
    t->types = calloc(n, sizeof *t->types);
    t->ends = calloc(n, sizeof *t->ends);
    if (!t->text || !t->offsets || !t->types || !t->ends)
        return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for a vocabulary of %zu tokens", n);
    return ATTAR_OK;
}

attar_status tokenizer_read_pieces(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    gguf_string model = {NULL, 0};
    gguf_get_string(gguf_find(file, "tokenizer.ggml.model"), &model);
    t->byte_level = equals(model, "gpt2");
    if (!t->byte_level && !equals(model, "llama"))
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.model must be 'gpt2' or 'llama', got '%.*s'",
                          (int)(model.length < 64 ? model.length : 64), model.data ? model.data : "");
    const gguf_kv *tokens = find_array(file, "tokenizer.ggml.tokens", GGUF_STRING);
    if (!tokens || tokens->count == 0 || tokens->count >= TOKENIZER_MAX_VOCAB)
        return attar_fail(error, ATTAR_ERROR_MODEL, "tokenizer.ggml.tokens must be an array of 1 to %d strings",
                          TOKENIZER_MAX_VOCAB - 1);
    t->n_vocab = (int32_t)tokens->count;
    for (int32_t byte = 0; byte < 256; byte++) t->byte_ids[byte] = -1;
    attar_status status = allocate_pieces(t, tokens, error);
    if (status == ATTAR_OK) status = read_types(t, file, error);
    const uint8_t *cursor = tokens->value;
    for (int32_t id = 0; id < t->n_vocab && status == ATTAR_OK; id++)
        status = add_piece(t, id, gguf_next_string(&cursor), error);
    return status;
}

// A token id of `tokenizer.ggml.<name>`; -1 where the file names none (converters also write 2^32 - 1 for that).
static attar_status read_id(const attar_tokenizer *t, const gguf_file *file, const char *key, int32_t *out,
                            attar_error *error) {
    int64_t value = -1;
    const gguf_kv *kv = gguf_find(file, key);
    *out = -1;
    if (kv && !gguf_get_i64(kv, &value)) return attar_fail(error, ATTAR_ERROR_MODEL, "%s must be an integer", key);
    if (value == -1 || value == UINT32_MAX) return ATTAR_OK;
    if (value < 0 || value >= t->n_vocab)
        return attar_fail(error, ATTAR_ERROR_MODEL, "%s must be a token id below %d, got %" PRId64, key, t->n_vocab,
                          value);
    *out = (int32_t)value;
    return ATTAR_OK;
}

static bool read_bool(const gguf_file *file, const char *key, bool otherwise) {
    bool value = otherwise;
    return gguf_get_bool(gguf_find(file, key), &value) ? value : otherwise;
}

// Marks the tokens that end a generation: those the file names, and turn ends known by name.
static attar_status read_ends(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    static const char *const names[] = {"<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"};
    if (t->eos >= 0) t->ends[t->eos] = true;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int32_t id = -1;
        attar_status status = read_id(t, file, keys[i], &id, error);
        if (status != ATTAR_OK) return status;
        if (id >= 0) t->ends[id] = true;
    }
    for (int32_t id = 0; id < t->n_vocab; id++) {
        for (size_t i = 0; i < sizeof names / sizeof names[0] && t->types[id] == TOKEN_CONTROL; i++)
            t->ends[id] |= equals((gguf_string){piece_text(t, id), piece_bytes(t, id)}, names[i]);
    }
    return ATTAR_OK;
}

attar_status tokenizer_read_settings(attar_tokenizer *t, const gguf_file *file, attar_error *error) {
    attar_status status = read_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos, error);
    if (status == ATTAR_OK) status = read_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos, error);
    if (status == ATTAR_OK) status = read_id(t, file, "tokenizer.ggml.unknown_token_id", &t->unknown, error);
    if (status == ATTAR_OK) status = read_ends(t, file, error);
    if (status != ATTAR_OK) return status;
    // llama.cpp's defaults where the keys are absent.
    t->add_bos = read_bool(file, "tokenizer.ggml.add_bos_token", !t->byte_level);
    t->add_eos = read_bool(file, "tokenizer.ggml.add_eos_token", false);
    t->add_space_prefix = !t->byte_level && read_bool(file, "tokenizer.ggml.add_space_prefix", true);
    gguf_string tie = {"length", 6}, pre = {"default", 7};
    gguf_get_string(gguf_find(file, "attar.tokenizer.tie_order"), &tie);
    t->tie_by_id = equals(tie, "id");
    if (!t->tie_by_id && !equals(tie, "length"))
        return attar_fail(error, ATTAR_ERROR_MODEL, "attar.tokenizer.tie_order must be 'length' or 'id'");
    gguf_get_string(gguf_find(file, "tokenizer.ggml.pre"), &pre);
    if (t->byte_level && !attar_split_rule(pre.data, (size_t)pre.length, &t->split))
        return attar_fail(error, ATTAR_ERROR_MODEL,
                          "tokenizer.ggml.pre must be one of default, gpt-2, llama-bpe, qwen2, smollm, got '%.*s'",
                          (int)(pre.length < 64 ? pre.length : 64), pre.data);
    t->whole_words_first = t->byte_level && t->split == SPLIT_LLAMA3;
    return ATTAR_OK;
}
