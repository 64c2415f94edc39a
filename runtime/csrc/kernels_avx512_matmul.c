// kernels_avx512_matmul.c: products of integer weights with 16-bit activations by VNNI (vpdpwssd: 16 lanes, each adding
// two products to a 32-bit sum). The sums are exact and the float steps are kernels_avx2_matmul.c's, so are the bits.
#define ATTAR_VNNI
#include "x86_matvec.h"

// 12 tokens x 16 rows: 12 integer and 12 float sums of the 32 registers. Remainders go by 4 and by 1.
enum { TILE_TOKENS = 12, FEW_TOKENS = 4 };

// Integer sums of `n` pairs of a tile, w [n][16 rows][2], with a few tokens, `cols` apart in x; lanes = rows.
ATTAR_INLINE void dot_pairs(const int16_t (*w)[TILE_ROWS][2], int32_t n, const int16_t *x, int64_t cols, int32_t tokens,
                            __m512i isum[TILE_TOKENS]) {
    for (int32_t t = 0; t < tokens; t++) isum[t] = _mm512_setzero_si512();
    for (int32_t p = 0; p < n; p++) {
        const __m512i pairs = _mm512_load_si512(w[p]);
        for (int32_t t = 0; t < tokens; t++) {
            int32_t pair;
            memcpy(&pair, x + t * cols + 2 * p, sizeof pair);
            isum[t] = _mm512_dpwssd_epi32(isum[t], pairs, _mm512_set1_epi32(pair));
        }
    }
}

// Adds a tile to sum [tokens]. x: the tile's first activation group of the first token.
ATTAR_INLINE void add_tile(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols, int32_t tokens,
                           __m512 sum[TILE_TOKENS]) {
    const int64_t groups = cols / ATTAR_GROUP;
    const int32_t pairs = ATTAR_GROUP / 2 / parts;
    for (int32_t g = 0; g < w->n; g++) {
        for (int32_t i = 0; i < parts; i++) {
            __m512i isum[TILE_TOKENS];
            dot_pairs(w->q[g] + i * pairs, pairs, x.q + g * ATTAR_GROUP + 2 * i * pairs, cols, tokens, isum);
            const __m512 scale = _mm512_load_ps(w->scale[g][i]);
            for (int32_t t = 0; t < tokens; t++) {
                const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(x.d[t * groups + g]));
                sum[t] = _mm512_add_ps(sum[t], _mm512_mul_ps(factor, _mm512_cvtepi32_ps(isum[t])));
            }
        }
        for (int32_t t = 0; offset && t < tokens; t++) {
            const __m512 product = _mm512_mul_ps(_mm512_load_ps(w->offset[g]), _mm512_set1_ps(x.s[t * groups + g]));
            sum[t] = _mm512_add_ps(sum[t], product);
        }
    }
}

// A few tokens, whose sums stay in registers.
ATTAR_INLINE void multiply_tokens(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols,
                                  int32_t tokens, attar_tile_output out) {
    const __mmask16 columns = (__mmask16)((1u << out.n_rows) - 1u);
    __m512 sum[TILE_TOKENS];
    for (int32_t t = 0; t < tokens; t++) {
        sum[t] = out.first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(columns, out.y + t * out.ldy);
    }
    add_tile(w, parts, offset, x, cols, tokens, sum);
    for (int32_t t = 0; t < tokens; t++) _mm512_mask_storeu_ps(out.y + t * out.ldy, columns, sum[t]);
}

// All tokens, a few at a time; `parts` and `offset` are the tile's, as constants.
ATTAR_INLINE void multiply_kind(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols,
                                int32_t n_tokens, attar_tile_output out) {
    int32_t step;
    for (int32_t t = 0; t < n_tokens; t += step) {
        const int64_t at = t * cols;
        const token_act here = {x.q + at, x.d + at / ATTAR_GROUP, x.s + at / ATTAR_GROUP};
        const attar_tile_output there = {out.y + t * out.ldy, out.ldy, out.n_rows, out.first};
        if (n_tokens - t >= TILE_TOKENS) {
            multiply_tokens(w, parts, offset, here, cols, step = TILE_TOKENS, there);
        } else if (n_tokens - t >= FEW_TOKENS) {
            multiply_tokens(w, parts, offset, here, cols, step = FEW_TOKENS, there);
        } else {
            multiply_tokens(w, parts, offset, here, cols, step = 1, there);
        }
    }
}

static void multiply_tile(const attar_tile *w, token_act x, int64_t cols, int32_t n_tokens, attar_tile_output out) {
    if (w->parts == 2) {
        multiply_kind(w, 2, false, x, cols, n_tokens, out);
    } else if (w->has_offset) {
        multiply_kind(w, 1, true, x, cols, n_tokens, out);
    } else {
        multiply_kind(w, 1, false, x, cols, n_tokens, out);
    }
}

void attar_avx512_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                         int64_t ldy) {
    if (n_tokens == 1) {
        matvec(w, row0, row1, (token_act){x.q, x.d, x.s}, y);
    } else {
        attar_avx2_matmul_tiles(w, row0, row1, x, n_tokens, y, ldy, multiply_tile);
    }
}
