// The product of a few rows with one of several stacked matrices, as XLA calls it. XLA's own packs the matrix first,
// which costs more than the product where a matrix is read for eight rows.
#include "few_rows.h"
#include "xla_call.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { CHUNKS_A_THREAD = 4 };
// Entries of a matrix below which one thread is done before another has begun.
static const int64_t SMALL = 32768;

// One product shared by threads: each takes the next chunk of columns until none is left. The last to let go frees it,
// as a thread may begin after all is done.
typedef struct shared_product {
    few_rows_product product;
    int64_t columns;  // of a chunk
    int64_t n_chunks;
    atomic_llong next, done, holders;
} shared_product;

static void compute(const few_rows_product *product, int64_t begin, int64_t end) {
#if defined(ATTAR_FEW_ROWS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        few_rows_avx2(product, begin, end);
        return;
    }
#endif
    few_rows_portable(product, begin, end);
}

static void work(shared_product *shared) {
    int64_t chunk;
    while ((chunk = atomic_fetch_add(&shared->next, 1)) < shared->n_chunks) {
        const int64_t begin = chunk * shared->columns, end = begin + shared->columns;
        compute(&shared->product, begin, end < shared->product.M ? end : shared->product.M);
        atomic_fetch_add(&shared->done, 1);
    }
}

static void let_go(shared_product *shared) {
    if (atomic_fetch_sub(&shared->holders, 1) == 1) free(shared);
}

static void help(void *data) {
    work(data);
    let_go(data);
}

static int64_t count_threads(const xla_call *call) {
    int64_t n = 1;
    xla_pool_num_threads asked = {sizeof asked, NULL, call->context, &n};
    xla_error *error = ((xla_pool_num_threads_function)call->api->functions[XLA_POOL_NUM_THREADS])(&asked);
    if (!error) return n;
    xla_error_destroy destroyed = {sizeof destroyed, NULL, error};
    ((xla_error_destroy_function)call->api->functions[XLA_ERROR_DESTROY])(&destroyed);
    return 1;
}

// Whether XLA's pool takes the task.
static bool schedule(const xla_call *call, shared_product *shared) {
    xla_pool_schedule asked = {sizeof asked, NULL, call->context, help, shared};
    xla_error *error = ((xla_pool_schedule_function)call->api->functions[XLA_POOL_SCHEDULE])(&asked);
    if (!error) return true;
    xla_error_destroy destroyed = {sizeof destroyed, NULL, error};
    ((xla_error_destroy_function)call->api->functions[XLA_ERROR_DESTROY])(&destroyed);
    return false;
}

static void multiply(const xla_call *call, few_rows_product product) {
    const int64_t n_threads = product.M * product.K < SMALL ? 1 : count_threads(call);
    shared_product *shared = n_threads > 1 ? malloc(sizeof *shared) : NULL;
    if (!shared) {
        compute(&product, 0, product.M);
        return;
    }
    const int64_t columns = (product.M + n_threads * CHUNKS_A_THREAD - 1) / (n_threads * CHUNKS_A_THREAD);
    *shared = (shared_product){.product = product, .columns = columns, .n_chunks = (product.M + columns - 1) / columns};
    atomic_init(&shared->next, 0);
    atomic_init(&shared->done, 0);
    atomic_init(&shared->holders, n_threads);
    for (int64_t i = 1; i < n_threads; i++)
        if (!schedule(call, shared)) let_go(shared);
    work(shared);
    // What is left is being computed right now: nobody waits for a thread that has not begun.
    while (atomic_load(&shared->done) < shared->n_chunks) sched_yield();
    let_go(shared);
}

static xla_error *refuse(const xla_call *call, const char *message) {
    xla_error_create asked = {sizeof asked, NULL, message, XLA_INVALID_ARGUMENT};
    return ((xla_error_create_function)call->api->functions[XLA_ERROR_CREATE])(&asked);
}

static bool is_buffer(const xla_values *values, int64_t index, int dtype, int64_t rank) {
    if (index >= values->size || values->types[index] != XLA_ARGUMENT_BUFFER) return false;
    const xla_buffer *buffer = values->values[index];
    return buffer->dtype == dtype && buffer->rank == rank;
}

// (x f32 [R, K], stacked f32 [L, M, K], index s32 []) -> f32 [R, M]: x times the transpose of stacked[index].
#if defined(_WIN32)
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
xla_error *attar_few_rows(xla_call *call) {
    if (call->extensions && call->extensions->type == XLA_EXTENSION_METADATA) {
        xla_metadata *metadata = ((xla_metadata_extension *)(void *)call->extensions)->metadata;
        metadata->version.major = XLA_MAJOR_VERSION;
        metadata->version.minor = XLA_MINOR_VERSION;
        metadata->traits = 0;
        return NULL;
    }
    if (call->stage != XLA_STAGE_EXECUTE) return NULL;
    const xla_values *in = &call->arguments, *out = &call->results;
    if (in->size != 3 || out->size != 1 || !is_buffer(in, 0, XLA_F32, 2) || !is_buffer(in, 1, XLA_F32, 3) ||
        !is_buffer(in, 2, XLA_S32, 0) || !is_buffer(out, 0, XLA_F32, 2))
        return refuse(call, "attar_few_rows takes float32 [R, K] and [L, M, K] and an int32, and gives float32 [R, M]");
    const xla_buffer *x = in->values[0], *stacked = in->values[1], *y = out->values[0];
    const int64_t L = stacked->dims[0], M = stacked->dims[1], K = stacked->dims[2];
    const int32_t index = *(const int32_t *)((const xla_buffer *)in->values[2])->data;
    if (x->dims[1] != K || y->dims[0] != x->dims[0] || y->dims[1] != M)
        return refuse(call, "attar_few_rows: the sizes of x, the matrices and the result must agree");
    if (index < 0 || index >= L) return refuse(call, "attar_few_rows: the index must be that of a matrix");
    const float *w = (const float *)stacked->data + index * M * K;
    multiply(call, (few_rows_product){x->data, w, y->data, x->dims[0], K, M});
    return NULL;
}
