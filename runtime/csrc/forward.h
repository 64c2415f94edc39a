// forward.h: runs tokens through the decoder.
//
// Dimension letters: T tokens in this step, D hidden, F intermediate, N query heads, K KV heads, G = N / K, H head
// size, V vocabulary, L layers, B the most tokens of a step. Arrays are row-major, the last dimension consecutive.
#ifndef ATTAR_FORWARD_H
#define ATTAR_FORWARD_H

#include "plan.h"
#include "threads.h"

// One step: T tokens at consecutive positions.
typedef struct {
    const attar_model *model;
    const attar_kernels *kernels;
    attar_pool *pool;
    const attar_cache *cache;  // holds the first `position` tokens; the step writes rows of the next T
    const attar_scratch *scratch;
    const int32_t *tokens;  // [T]
    int32_t n_tokens;       // T, 1 to B
    int32_t position;       // of the first token
    float *logits;          // [n_logits, V], for the last n_logits tokens
    int32_t n_logits;       // 0 to T
} attar_step;

void attar_forward(attar_step *step);

#endif
