// A step of decoding: one token of every row through all layers.
#ifndef ATTAR_DECODE_STEP_H
#define ATTAR_DECODE_STEP_H

#include "kernels.h"
#include "team.h"

// What XLA hands over, in order. Norms that a family has not are [L, 0].
enum {
    INPUT,          // f32 [R, D], embedded tokens
    ROPE,           // f32 [kinds, 2, R, H/2], cosines and sines
    POSITION,       // s32 [R]
    KEY_POSITIONS,  // s32 [R, S], those of this step's tokens among them
    SLOT,           // s32 [], where this step's keys and values go
    LAYERS,         // s32 [L, 2], window and kind of each
    CONSTANTS,      // f32 [5], see below
    KEYS,           // f32 [L, R, K, S, H]
    VALUES,
    Q_PROJ,  // f32 [L, N * H, D]
    K_PROJ,  // f32 [L, K * H, D]
    V_PROJ,
    O_PROJ,     // f32 [L, D, N * H]
    GATE_PROJ,  // f32 [L, F, D]
    UP_PROJ,
    DOWN_PROJ,   // f32 [L, D, F]
    INPUT_NORM,  // f32 [L, D]
    POST_ATTENTION_NORM,
    PRE_MLP_NORM,
    POST_MLP_NORM,
    Q_NORM,  // f32 [L, H]
    K_NORM,
    N_ARGUMENTS
};
enum { EPS, GAIN_OFFSET, QUERY_SCALE, CAP, IS_GELU, N_CONSTANTS };

typedef struct step {
    const engine_kernels *kernels;
    // Layers, rows, hidden and intermediate size, heads, heads of keys and values, their width, slots of the cache.
    int64_t L, R, D, F, N, K, H, S;
    int64_t kinds;  // of rotations
    const void *in[N_ARGUMENTS];
    float *keys, *values, *stream;  // stream [R, D]
    // Room to work in: [R, D], [R, N * H], [R, K * H] twice, [R, N * H], [R, F] twice, [R, D].
    float *normed, *q, *k, *v, *attended, *gate, *up, *branch;
    float *queries, *scores;  // of each thread: [G, H] and [G, score_stride]
    int32_t *seen;            // of each thread: [S]
    int64_t score_stride, pieces;
} step;

// A piece of a stage, for the team that runs the layers; `work` is the step.
void decode_piece(void *work, int64_t stage, int64_t piece, int64_t thread);

// Runs all layers; `t` may be NULL, and `pieces` is then 1.
void run_layers(const step *s, team *t);

#endif
