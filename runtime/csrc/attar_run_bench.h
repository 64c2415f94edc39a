// attar_run_bench.h: attar-run --bench, the runtime's speed and memory with nothing around it.
#ifndef ATTAR_RUN_BENCH_H
#define ATTAR_RUN_BENCH_H

#include <stdio.h>

#include "attar.h"

enum { BENCH_MOST_DEPTHS = 8 };

// What to measure. Lengths in tokens.
typedef struct {
    int32_t prefill_tokens;             // of the prompt whose reading is timed
    int32_t decode_tokens;              // made one by one at each depth
    int32_t depths[BENCH_MOST_DEPTHS];  // tokens in the context before decoding starts
    int32_t n_depths;                   // 0 measures at an empty context
    int32_t repeats;                    // every figure is taken so often, and each take reported
} bench_plan;

// Measures and prints one line of JSON. A session whose n_ctx is 0 gets the context that the plan needs.
attar_status bench_run(const char *path, attar_session_params session, bench_plan plan, FILE *out, attar_error *error);

#endif
