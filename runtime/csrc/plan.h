// plan.h: what a session will hold, worked out before anything is allocated.
#ifndef ATTAR_PLAN_H
#define ATTAR_PLAN_H

#include <stdatomic.h>

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

// What one thread needs for attention. R = attar_attend_rows; V and Q as in attend.h.
typedef struct {
    float *row;             // [V] a query on its way
    uint16_t *halves;       // [V] a query, key or value as 16-bit values
    void *queries;          // [R, H] float or [R, Q, 4] int16, in blocks of rows as the kernels take them
    float *scales;          // [R] of integer queries
    attar_softmax *states;  // [R]
    float *sums;            // [R, V]
} attar_attend_room;

// Columns of the MLP that a thread works on at once: with 256 tokens, half a MiB.
enum { ATTAR_MLP_COLUMNS = 256 };

typedef struct {
    float *gate, *up;  // [B, columns]
} attar_mlp_room;

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
    float *gate;     // [B, F] down_proj's input; none where every layer takes integers
    attar_act act;   // [P, W] h or mixed, whichever the next product takes, as integers
    attar_act head_act;  // [P, D] h for the head, as 16-bit integers
    attar_act gate_act;  // [B, F] gate, as integers

    float *key_scales;         // [2, L, K, H] of an int8 cache, as attar_key_scales gives them
    attar_attend_room *rooms;   // [threads]
    attar_mlp_room *mlp_rooms;  // [threads]
    float *slide_room;         // [6, value width], see attar_cache_slide
    // A single token's keys fall into chunks, so that all threads share few heads.
    attar_softmax *chunk_states;  // [K, chunks, G]
    float *chunk_sums;            // [K, chunks, G, V], V as in attend.h
    atomic_int *chunks_done;      // [K], 0 between layers
} attar_scratch;

// The most query rows an attend_room holds: whole tokens of one KV head.
int32_t attar_attend_rows(const attar_model *model);

attar_status attar_plan_make(const attar_model *model, const attar_session_params *params, attar_session_plan *plan,
                             attar_error *error);

// Bytes of scratch memory. With `memory` (64-byte aligned, that many bytes), also points `scratch` into it.
uint64_t attar_scratch_place(const attar_model *model, const attar_session_plan *plan, uint8_t *memory,
                             attar_scratch *scratch);

#endif
