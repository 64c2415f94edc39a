// attention.h: the attention phase of a layer.
#ifndef ATTAR_ATTENTION_H
#define ATTAR_ATTENTION_H

#include "forward.h"

// From q [T, N*H], k, v [T, K*H]: q/k norm, RoPE, new cache rows, attention -> mixed [T, N*H], and the same in act if
// o_proj takes integers. Called by every thread between two barriers.
void attar_attention(const attar_step *step, int32_t layer, int32_t thread, int32_t n_threads);

// Offset in cosines and sines [2, T, H/2] of token t.
int64_t attar_rope_at(const attar_step *step, bool local, int32_t t);

#endif
