// kernels_test: checks every table of kernels that this CPU runs, the scalar one included. Exits 1 on a failure.
#include "kernels_test.h"

#include <string.h>

#if defined(ATTAR_EMULATE_AVX512)
// The AVX-512 files compiled against SIMDe run anywhere.
static int32_t tables_under_test(const attar_kernels *out[4]) {
    out[0] = &attar_kernels_avx512;
    return 1;
}
#else
static int32_t tables_under_test(const attar_kernels *out[4]) { return attar_kernels_available(out); }
#endif

int main(void) {
    const attar_kernels *tables[4];
    const int32_t n = tables_under_test(tables);
    check c = {0};
    test_packed(&c);
    test_key_scales(&c);
    printf("packed: %d failures\n", c.failures);
    for (int32_t i = 0; i < n; i++) {
        test_quantize(&c, tables[i]);
        test_matmul(&c, tables[i]);
        test_extremes(&c, tables[i]);
        test_fused(&c, tables[i]);
        test_matmul_f32(&c, tables[i]);
        test_attend(&c, tables[i]);
        test_vectors(&c, tables[i]);
        test_half_floats(&c, tables[i]);
        test_round_i16(&c, tables[i]);
        test_slide(&c, tables[i]);
        printf("%s: %d failures\n", tables[i]->name, c.failures);
    }
    return c.failures != 0;
}
