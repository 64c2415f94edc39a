// plan.h: what a session will hold, worked out before anything is allocated.
#ifndef ATTAR_PLAN_H
#define ATTAR_PLAN_H

#include "kernels.h"
#include "kv_cache.h"
#include "model.h"

// Session parameters with every default filled in, and the bytes they cost.
typedef struct {
    int32_t n_ctx, n_threads, n_batch;  // B = n_batch
    int32_t activation_bits;            // 8 or 16
    attar_kv_type kv_type;
    attar_overflow overflow;
    int32_t n_keep;
    attar_memory memory;
} attar_session_plan;

// Working memory of a session; one block. B tokens are in flight; W = max(D, N*H); G = N / K; P = max(B, threads): a
// single token's residual stream is kept by every thread for itself, in row `thread`.
typedef struct {
    attar_cache_layer *cache_layers;  // [L]
    double *inverse_frequencies;      // [2, H/2], radians a position: global layers, then local layers
    float *cosines, *sines;           // [2, T, H/2] angles of the T tokens in flight, in that order of kinds

    float *x;        // [P, D] the residual stream
    float *h;        // [P, D] the residual stream, normalised
    float *q, *k, *v;  // [B, N*H], [B, K*H], [B, K*H]
    float *mixed;    // [B, N*H] attention's output
    float *branch;   // [B, D] o_proj's or down_proj's output
    float *gate, *up;  // [B, F]
    attar_act act;   // [P, W] h or mixed, whichever the next product takes, as integers
    attar_act gate_act;  // [B, F] gate, as integers

    attar_softmax *states;  // [threads, G]
    float *scores;          // [threads, G, ATTAR_ATTEND_CHUNK]

    // One decoding step splits the keys into chunks, so that all threads share few heads.
    attar_softmax *chunk_states;  // [K, chunks, G]
    float *chunk_sums;            // [K, chunks, G, H]
} attar_scratch;

// Keys in a chunk of a decoding step. Fixed, so that results do not depend on the number of threads.
enum { ATTAR_DECODE_CHUNK = 128 };

attar_status attar_plan_make(const attar_model *model, const attar_session_params *params, attar_session_plan *plan,
                             attar_error *error);

// Bytes of scratch memory. With `memory` (64-byte aligned, that many bytes), also points `scratch` into it.
uint64_t attar_scratch_place(const attar_model *model, const attar_session_plan *plan, uint8_t *memory,
                             attar_scratch *scratch);

#endif
