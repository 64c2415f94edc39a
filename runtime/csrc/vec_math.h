// vec_math.h: exponential and hyperbolic tangent of a `vec`. Include after vec_avx2.h or vec_avx512.h.
#ifndef ATTAR_VEC_MATH_H
#define ATTAR_VEC_MATH_H

// e^x within 2 units in the last place for -87.3 <= x <= 88.3, 0 below, held at the last value above.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor series to r^7 (remainder 5e-9); 2^n by the exponent field.
ATTAR_INLINE vec vec_exp(vec x) {
    const vec least = vec_set1(-87.3f);
    const vec held = vec_min(vec_max(x, least), vec_set1(88.3f));
    const vec n = vec_round(vec_mul(held, vec_set1(1.44269504f)));
    vec r = vec_fnma(n, vec_set1(0x1.62e4p-1f), held);  // ln 2 in two parts, so that n times the first is exact
    r = vec_fnma(n, vec_set1(0x1.7f7d1cp-20f), r);
    vec p = vec_set1(1.0f / 5040);
    p = vec_fma(p, r, vec_set1(1.0f / 720));
    p = vec_fma(p, r, vec_set1(1.0f / 120));
    p = vec_fma(p, r, vec_set1(1.0f / 24));
    p = vec_fma(p, r, vec_set1(1.0f / 6));
    p = vec_fma(p, r, vec_set1(0.5f));
    p = vec_fma(p, r, vec_set1(1.0f));
    p = vec_fma(p, r, vec_set1(1.0f));
    return vec_keep_from(vec_scale2(p, n), x, least);
}

// e^x for x <= 0, as the softmax wants it: within 3e-7, and at least 2^-126 instead of 0. x log2 e = n + r, |r| <= 1/2;
// 2^r by its best polynomial of degree 5 (relative error 7.5e-8, by Remez' exchange).
ATTAR_INLINE vec vec_exp_weight(vec x) {
    const vec t = vec_max(vec_mul(x, vec_set1(1.44269504f)), vec_set1(-126.0f));
    const vec n = vec_round(t), r = vec_sub(t, n);
    vec p = vec_set1(0x1.5c08e6p-10f);
    p = vec_fma(p, r, vec_set1(0x1.3d0c52p-7f));
    p = vec_fma(p, r, vec_set1(0x1.c6b6e4p-5f));
    p = vec_fma(p, r, vec_set1(0x1.ebf918p-3f));
    p = vec_fma(p, r, vec_set1(0x1.62e428p-1f));
    p = vec_fma(p, r, vec_set1(0x1.000002p+0f));
    return vec_scale2(p, n);
}

// tanh x = sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|); absolute error about 1e-7.
ATTAR_INLINE vec vec_tanh(vec x) {
    const vec one = vec_set1(1.0f), e = vec_exp(vec_mul(vec_abs(x), vec_set1(-2.0f)));
    return vec_copy_sign(vec_div(vec_sub(one, e), vec_add(one, e)), x);
}

// x [n] becomes cap * tanh(x / cap).
static void vec_soft_cap(float *x, float cap, int32_t n) {
    const vec factor = vec_set1(cap), inverse = vec_set1(1.0f / cap);
    for (int32_t i = 0; i < n; i += LANES) {
        vec_store(x + i, n - i, vec_mul(factor, vec_tanh(vec_mul(vec_load(x + i, n - i), inverse))));
    }
}

#endif
