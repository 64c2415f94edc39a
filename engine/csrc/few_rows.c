// The product of a few rows with a matrix, as XLA calls it. XLA's own packs the matrix first, which costs more than the
// product where a matrix is read for eight rows.
#include "call_values.h"
#include "kernels.h"
#include "team.h"

// Entries of a matrix that are worth a thread: less is done before another has begun.
static const int64_t WORTH_A_THREAD = 16384;

typedef struct shared_product {
    few_rows_product product;
    const engine_kernels *kernels;
    int64_t columns;  // of a piece
} shared_product;

static void multiply_piece(void *work, int64_t stage, int64_t piece, int64_t thread) {
    (void)stage, (void)thread;
    const shared_product *shared = work;
    const int64_t begin = piece * shared->columns, end = begin + shared->columns, M = shared->product.M;
    shared->kernels->multiply(&shared->product, begin, end < M ? end : M);
}

static void multiply(const xla_call *call, few_rows_product product) {
    const int64_t M = product.M, n_threads = team_threads(call, M * product.K, WORTH_A_THREAD);
    const int64_t wanted = n_threads > 1 ? n_threads * TEAM_PIECES : 1, columns = (M + wanted - 1) / wanted;
    shared_product shared = {product, choose_kernels(), columns};
    team *t = n_threads > 1 ? team_gather(call, n_threads, multiply_piece, &shared) : NULL;
    if (!t) {
        shared.kernels->multiply(&product, 0, M);
        return;
    }
    team_run(t, 0, (M + columns - 1) / columns);
    team_dismiss(t);
}

// (x f32 [R, K], w f32 [M, K]) -> f32 [R, M]: x times the transpose of w.
XLA_FUNCTION xla_error *attar_few_rows(xla_call *call) {
    if (is_inquiry(call)) return NULL;
    const xla_values *in = &call->arguments, *out = &call->results;
    const xla_buffer *x = buffer_of(in, 0, XLA_F32, 2), *w = buffer_of(in, 1, XLA_F32, 2);
    const xla_buffer *y = buffer_of(out, 0, XLA_F32, 2);
    if (!x || !w || !y || in->size != 2 || out->size != 1)
        return refuse(call, "attar_few_rows takes float32 [R, K] and [M, K], and gives float32 [R, M]");
    const int64_t R = x->dims[0], K = x->dims[1], M = w->dims[0];
    if (w->dims[1] != K || y->dims[0] != R || y->dims[1] != M)
        return refuse(call, "attar_few_rows: the sizes of x, the matrix and the result must agree");
    multiply(call, (few_rows_product){x->data, w->data, y->data, R, K, M});
    return NULL;
}
