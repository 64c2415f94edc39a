// gguf.h: a checked view of a GGUF file (versions 2 and 3, little endian).
//
//   offset 0   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
//              n_kv    x { string key | u32 type | value }            string = u64 length | bytes
//              n_tensors x { string name | u32 n_dims | u64 dims[n_dims] | u32 type | u64 offset }
//   aligned    tensor data, each at data_start + offset, dims innermost first
//
// The file is untrusted: gguf_open checks every count, length, type and offset against the file size before use, so
// every pointer handed out below lies inside the mapping.
#ifndef ATTAR_GGUF_H
#define ATTAR_GGUF_H

#include "attar.h"

typedef enum {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64,
} gguf_type;

typedef struct {
    const char *data;
    uint64_t length;
} gguf_string;

// One metadata entry. Scalars: `value` points at the bytes. Arrays: element type, count, first element.
typedef struct {
    gguf_string key;
    gguf_type type;          // GGUF_ARRAY for arrays
    gguf_type element_type;  // of arrays
    uint64_t count;          // of arrays
    const uint8_t *value;    // string: at its u64 length
} gguf_kv;

typedef struct {
    gguf_string name;
    int32_t n_dims;
    uint64_t dims[4];  // innermost first; unused are 1
    uint32_t type;     // a ggml type number, checked to be one that quants.h knows
    const uint8_t *data;
    uint64_t bytes;
} gguf_tensor;

typedef struct gguf_file gguf_file;

// Opens a model: one file, or the first of several parts "NAME-00001-of-00003.gguf", whose others lie beside it. The
// metadata is the first part's.
attar_status gguf_open(const char *path, gguf_file **out, attar_error *error);
// Opens one file alone.
attar_status gguf_open_part(const char *path, gguf_file **out, attar_error *error);
// Adds the tensors of `part` to those of `file`, which owns it from then on, whatever is returned.
attar_status gguf_adopt(const char *path, gguf_file *file, gguf_file *part, attar_error *error);
void gguf_close(gguf_file *file);
uint64_t gguf_size(const gguf_file *file);
// Copies bytes of the file that are mapped at `at`, past the mapping: a page that is touched there stays resident, and
// where the page cache holds the file in larger pieces, so does all of the piece.
attar_status gguf_read(const gguf_file *file, const void *at, void *into, uint64_t bytes, attar_error *error);

const gguf_kv *gguf_find(const gguf_file *file, const char *key);             // NULL if absent
const gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name);  // NULL if absent
uint64_t gguf_tensor_count(const gguf_file *file);
const gguf_tensor *gguf_tensor_at(const gguf_file *file, uint64_t index);

// Typed reads: false if the entry is absent (NULL) or of another kind. Integers of any width convert if they fit.
bool gguf_get_i64(const gguf_kv *kv, int64_t *out);
bool gguf_get_f64(const gguf_kv *kv, double *out);
bool gguf_get_bool(const gguf_kv *kv, bool *out);
bool gguf_get_string(const gguf_kv *kv, gguf_string *out);

// Walks a string array: start with cursor = kv->value, call kv->count times; no call can leave the file.
gguf_string gguf_next_string(const uint8_t **cursor);

#endif
