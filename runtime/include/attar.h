// attar.h: the public C API of the attar runtime.
//
// A model is an opened GGUF file, shareable between threads. Opening reads the metadata alone, so attar_plan can say
// what a session would cost before anything is loaded; the first session brings the weights into memory, once for all.
// A session is one token sequence with its KV cache, planned and allocated when it is created; after that no call
// allocates. Every function that can fail
// returns an attar_status and fills the caller's attar_error with one line; nothing prints, exits or aborts.
#ifndef ATTAR_H
#define ATTAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ATTAR_API __attribute__((visibility("default")))
#else
#define ATTAR_API
#endif

typedef enum {
    ATTAR_OK = 0,
    ATTAR_ERROR_IO = 1,        // the file cannot be opened, read or mapped
    ATTAR_ERROR_FORMAT = 2,    // the file is not a well-formed GGUF
    ATTAR_ERROR_MODEL = 3,     // well-formed, but not a model this runtime runs
    ATTAR_ERROR_ARGUMENT = 4,  // the caller's request cannot be served
    ATTAR_ERROR_MEMORY = 5,    // out of memory, or over the stated budget
    ATTAR_ERROR_CONTEXT = 6,   // the sequence would outgrow its context
} attar_status;

// Caller-owned message buffer. The first error wins; the message names the file offset or tensor where there is one.
typedef struct {
    attar_status status;
    char message[512];
} attar_error;

typedef struct attar_model attar_model;
typedef struct attar_session attar_session;

// Hyperparameters of an opened model, copied out for callers. Lengths in tokens.
typedef struct {
    char architecture[32];  // "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"
    int32_t n_vocab, n_embd, n_ff, n_layers, n_heads, n_kv_heads, head_dim;
    int32_t n_ctx_train, sliding_window, n_local_layers;
    uint64_t file_bytes, weight_bytes, n_parameters;
    int32_t bos_token, eos_token, eot_token;  // -1 where the file names none
} attar_model_info;

// How keys and values are cached.
typedef enum {
    ATTAR_KV_F16 = 0,
    ATTAR_KV_INT8 = 1,  // a scale for each position and head: half the bytes, faster at depth, a little less exact
} attar_kv_type;

// What happens when a sequence would outgrow its context.
typedef enum {
    ATTAR_OVERFLOW_REFUSE = 0,  // ATTAR_ERROR_CONTEXT; nothing changes
    // The first n_keep tokens stay, half of the others are forgotten (the oldest), the rest move down to their places.
    ATTAR_OVERFLOW_SLIDE = 1,
} attar_overflow;

typedef struct {
    int32_t n_ctx;            // most tokens held, at most n_ctx_train; 0 takes min(n_ctx_train, 4096)
    int32_t n_threads;        // 0 takes the usable cores
    int32_t n_batch;          // most prompt tokens run at once; 0 takes 256
    int32_t activation_bits;  // 8 (or 0): fast; 16: nearly the logits of float arithmetic on the same weights. The
                              // head's input always has 16
    int32_t kv_type;          // attar_kv_type
    int32_t overflow;         // attar_overflow
    int32_t n_keep;           // of ATTAR_OVERFLOW_SLIDE: tokens that are never forgotten, such as a system prompt
    uint64_t memory_budget;   // bytes for weights + cache + scratch; 0 is unlimited
} attar_session_params;

// Bytes a session needs, known before anything is allocated.
typedef struct {
    uint64_t weight_bytes, cache_bytes, scratch_bytes;
} attar_memory;

// --- model ----------------------------------------------------------------------------------------------------
ATTAR_API attar_status attar_model_open(const char *path, attar_model **out, attar_error *error);
ATTAR_API void attar_model_free(attar_model *model);
ATTAR_API void attar_model_get_info(const attar_model *model, attar_model_info *info);
// The value of a string metadata key ("tokenizer.chat_template"), NULL if absent. Not NUL-terminated: use *length.
ATTAR_API const char *attar_model_metadata(const attar_model *model, const char *key, size_t *length);

// --- session --------------------------------------------------------------------------------------------------
ATTAR_API attar_status attar_plan(const attar_model *model, const attar_session_params *params, attar_memory *out,
                                  attar_error *error);
ATTAR_API attar_status attar_session_create(attar_model *model, const attar_session_params *params,
                                            attar_session **out, attar_error *error);
ATTAR_API void attar_session_free(attar_session *session);
ATTAR_API int32_t attar_session_position(const attar_session *session);
ATTAR_API int32_t attar_session_context(const attar_session *session);
// Appends n >= 1 tokens. `logits` receives [n_vocab] after the last token, or is NULL.
ATTAR_API attar_status attar_session_eval(attar_session *session, const int32_t *tokens, size_t n, float *logits,
                                          attar_error *error);
// Appends n >= 1 tokens. `logits` receives [n, n_vocab], one row after each token.
ATTAR_API attar_status attar_session_score(attar_session *session, const int32_t *tokens, size_t n, float *logits,
                                           attar_error *error);
// Keeps the first `position` tokens. Fails where a local layer's ring no longer holds the keys that needs.
ATTAR_API attar_status attar_session_rewind(attar_session *session, int32_t position, attar_error *error);

// --- sampling -------------------------------------------------------------------------------------------------
typedef struct {
    float temperature;  // 0 is greedy
    int32_t top_k;      // 0 keeps all
    float top_p;        // 1 keeps all
    float min_p;        // 0 keeps all
} attar_sampler_params;

typedef struct attar_sampler attar_sampler;
ATTAR_API attar_status attar_sampler_create(int32_t n_vocab, const attar_sampler_params *params, uint64_t seed,
                                            attar_sampler **out, attar_error *error);
ATTAR_API void attar_sampler_free(attar_sampler *sampler);
// Draws a token from logits [n_vocab]; ties go to the lowest id. The same seed draws the same tokens on every platform.
ATTAR_API int32_t attar_sampler_draw(attar_sampler *sampler, const float *logits);

// --- tokenizer ------------------------------------------------------------------------------------------------
typedef struct attar_tokenizer attar_tokenizer;
ATTAR_API attar_status attar_tokenizer_create(const attar_model *model, attar_tokenizer **out, attar_error *error);
ATTAR_API void attar_tokenizer_free(attar_tokenizer *tokenizer);
// Encodes UTF-8 (invalid bytes are encoded as bytes where the vocabulary can). Writes at most `capacity` ids and sets
// *count to the number needed; ATTAR_ERROR_ARGUMENT if that is larger than capacity. `add_special` adds BOS/EOS where
// the file asks for it; `parse_special` recognises control tokens such as <|im_end|> in the text. Allocates, and frees
// before it returns, up to 140 bytes for each byte of the longest stretch that is merged at once (byte-level: a word;
// SentencePiece: the text between special tokens). A tokenizer may be used from several threads at a time.
ATTAR_API attar_status attar_tokenizer_encode(const attar_tokenizer *tokenizer, const char *text, size_t length,
                                              bool add_special, bool parse_special, int32_t *ids, size_t capacity,
                                              size_t *count, attar_error *error);
// The bytes of one token as they appear in text, not NUL-terminated; NULL for an id outside the vocabulary.
// Control tokens give zero bytes unless `special`.
ATTAR_API const char *attar_tokenizer_piece(const attar_tokenizer *tokenizer, int32_t id, bool special,
                                            size_t *length);
ATTAR_API bool attar_tokenizer_is_end(const attar_tokenizer *tokenizer, int32_t id);

ATTAR_API const char *attar_version(void);
// The instruction set whose kernels were chosen for this CPU: "avx512", "avx2" or "scalar".
ATTAR_API const char *attar_kernels_name(void);

#ifdef __cplusplus
}
#endif
#endif
