// rope.h: rotary position embeddings: which angle each pair of a head turns by.
//
// Su et al., 2021, arXiv:2104.09864, with the scalings that the families publish: linear (all frequencies divided),
// Llama 3's (rope_freqs.weight divides each) and YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.4).
#ifndef ATTAR_ROPE_H
#define ATTAR_ROPE_H

#include "model.h"

// Frequencies [2, H/2] in radians a position: global layers, then local layers.
void attar_rope_frequencies(const attar_model *model, double *out);

// cosines, sines [H/2] at `position`, of the frequencies [H/2] of one kind of layer, times the model's magnitude there.
void attar_rope_angles(const attar_model *model, bool local, const double *frequencies, int32_t position,
                       float *cosines, float *sines);

#endif
