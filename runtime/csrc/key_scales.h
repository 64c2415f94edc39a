// key_scales.h: evens out the dimensions of keys before they are rounded to int8.
//
// One scale serves all H integers of a key, so a dimension that is always large (Qwen 2's biases, Gemma 3's k_norm)
// takes the precision from the others. Keys are divided, and queries multiplied, by the size that the weights let
// expect of each dimension; scores stay what they are (Xiao et al., 2022, arXiv:2211.10438, between activations and
// weights). Both members of a rotated pair share a factor, so that rotations, a slide's too, do not mind.
#ifndef ATTAR_KEY_SCALES_H
#define ATTAR_KEY_SCALES_H

#include "model.h"

// out [2, L, K, H]: factors of the keys, then of the queries, these with the model's query scale. row: [D] for the call's own use.
void attar_key_scales(const attar_model *model, float *row, float *out);

#endif
