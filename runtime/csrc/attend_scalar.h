// attend_scalar.h: the scalar table's attention kernels; contracts in kernels.h.
#ifndef ATTAR_ATTEND_SCALAR_H
#define ATTAR_ATTEND_SCALAR_H

#include "attend.h"

void attar_scalar_f32_to_f16(const float *x, uint16_t *y, int32_t n);
float attar_scalar_round_i16(const float *x, int16_t *y, int32_t n, float limit);
void attar_scalar_attend_f16(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums);
void attar_scalar_attend_int8(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums);

#endif
