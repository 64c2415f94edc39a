// kernels_test.h: the parts of kernels_test; each checks one table against the scalar one or against double arithmetic.
#ifndef ATTAR_TESTS_KERNELS_TEST_H
#define ATTAR_TESTS_KERNELS_TEST_H

#include "check.h"
#include "kernels.h"

void test_packed(check *c);
void test_quantize(check *c, const attar_kernels *kernels);
void test_matmul(check *c, const attar_kernels *kernels);
void test_extremes(check *c, const attar_kernels *kernels);
void test_fused(check *c, const attar_kernels *kernels);
void test_matmul_f32(check *c, const attar_kernels *kernels);
void test_attend(check *c, const attar_kernels *kernels);
void test_vectors(check *c, const attar_kernels *kernels);
void test_half_floats(check *c, const attar_kernels *kernels);
void test_round_i16(check *c, const attar_kernels *kernels);
void test_key_scales(check *c);
void test_slide(check *c, const attar_kernels *kernels);

#endif
