// Models in several files, as gguf-split writes them: NAME-00001-of-00003.gguf and so on, each with split.no (from 0),
// split.count and split.tensors.count.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "gguf.h"

enum { MAX_PARTS = 9999, SUFFIX_BYTES = 64 };

static int64_t integer(const gguf_file *file, const char *key, int64_t fallback) {
    int64_t value = fallback;
    (void)gguf_get_i64(gguf_find(file, key), &value);
    return value;
}

// The path of part `i` of n (from 0), in the place of that of the first, whose ending it replaces; NULL where the path
// does not end as that of a first part. The caller frees it.
static char *part_path(const char *first, int64_t i, int64_t n) {
    char ending[SUFFIX_BYTES];
    const int length = snprintf(ending, sizeof ending, "-00001-of-%05" PRId64 ".gguf", n);
    const size_t bytes = strlen(first);
    if (bytes < (size_t)length || strcmp(first + bytes - (size_t)length, ending) != 0) return NULL;
    char *path = malloc(bytes + SUFFIX_BYTES);
    if (!path) return NULL;
    const int stem = (int)(bytes - (size_t)length);
    snprintf(path, bytes + SUFFIX_BYTES, "%.*s-%05" PRId64 "-of-%05" PRId64 ".gguf", stem, first, i + 1, n);
    return path;
}

static attar_status adopt_part(gguf_file *file, const char *path, int64_t i, int64_t n, attar_error *error) {
    gguf_file *part = NULL;
    attar_status status = gguf_open_part(path, &part, error);
    if (status != ATTAR_OK) return status;
    const int64_t no = integer(part, "split.no", -1), count = integer(part, "split.count", -1);
    if (no == i && count == n) return gguf_adopt(path, file, part, error);
    gguf_close(part);
    return attar_fail(error, ATTAR_ERROR_FORMAT,
                      "%s: must be part %" PRId64 " of %" PRId64 " (split.no, split.count), but says %" PRId64 " of %" PRId64,
                      path, i, n, no, count);
}

static attar_status adopt_parts(gguf_file *file, const char *path, int64_t n, attar_error *error) {
    if (integer(file, "split.no", 0) != 0 || n > MAX_PARTS)
        return attar_fail(error, ATTAR_ERROR_MODEL, "%s: part %" PRId64 " of %" PRId64 " of a model; open the first part",
                          path, integer(file, "split.no", 0) + 1, n);
    attar_status status = ATTAR_OK;
    for (int64_t i = 1; i < n && status == ATTAR_OK; i++) {
        char *next = part_path(path, i, n);
        if (!next)
            return attar_fail(error, ATTAR_ERROR_MODEL,
                              "%s: the first of %" PRId64 " parts must end in -00001-of-%05" PRId64
                              ".gguf, so that the others are found beside it",
                              path, n, n);
        status = adopt_part(file, next, i, n, error);
        free(next);
    }
    const int64_t found = (int64_t)gguf_tensor_count(file), stated = integer(file, "split.tensors.count", found);
    if (status == ATTAR_OK && found != stated)
        return attar_fail(error, ATTAR_ERROR_FORMAT, "%s: its parts hold %" PRId64 " tensors, split.tensors.count says %" PRId64,
                          path, found, stated);
    return status;
}

attar_status gguf_open(const char *path, gguf_file **out, attar_error *error) {
    *out = NULL;
    gguf_file *file = NULL;
    attar_status status = gguf_open_part(path, &file, error);
    if (status != ATTAR_OK) return status;
    const int64_t n = integer(file, "split.count", 1);
    if (n > 1) status = adopt_parts(file, path, n, error);
    if (status == ATTAR_OK)
        *out = file;
    else
        gguf_close(file);
    return status;
}
