#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "quants.h"

enum {
    MIN_KV_BYTES = 8 + 4 + 1,              // empty key, type, one-byte value: bounds n_kv by the file size
    MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8,  // empty name, n_dims, one dim, type, offset
    MAX_NAME_BYTES = 65535,                // the specification's limit on keys
    DEFAULT_ALIGNMENT = 32,
    MIN_ALIGNMENT = 8,  // so that F32 data may be read in place
    MAX_ALIGNMENT = 65536,
};

struct gguf_file {
    char *path;
    int descriptor;       // -1 until it is open
    const uint8_t *data;  // the mapping
    uint64_t size;
    gguf_kv *kvs;  // sorted by key
    uint64_t n_kv;
    gguf_tensor *tensors;  // sorted by name, those of adopted parts included
    uint64_t n_tensors;
    gguf_file **parts;  // adopted, kept open
    uint64_t n_parts;
};

// Reads forward through the mapping; `at` never passes `size`.
typedef struct {
    const char *path;
    const uint8_t *data;
    uint64_t size, at;
    attar_error *error;
} cursor;

static int print_length(gguf_string s) { return s.length < 128 ? (int)s.length : 128; }

#define NAME(s) print_length(s), (s).data

static uint64_t load_le(const uint8_t *p, int32_t bytes) {
    uint64_t value = 0;
    for (int32_t i = 0; i < bytes; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

static attar_status take(cursor *c, uint64_t n, const char *what, const uint8_t **out) {
    if (n > c->size - c->at)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: truncated: %s at byte %" PRIu64 " needs %" PRIu64 " bytes, the file ends at %" PRIu64,
                          c->path, what, c->at, n, c->size);
    *out = c->data + c->at;
    c->at += n;
    return ATTAR_OK;
}

static attar_status take_u32(cursor *c, const char *what, uint32_t *out) {
    const uint8_t *p = NULL;
    attar_status status = take(c, 4, what, &p);
    if (status == ATTAR_OK) *out = (uint32_t)load_le(p, 4);
    return status;
}

static attar_status take_u64(cursor *c, const char *what, uint64_t *out) {
    const uint8_t *p = NULL;
    attar_status status = take(c, 8, what, &p);
    if (status == ATTAR_OK) *out = load_le(p, 8);
    return status;
}

static attar_status take_string(cursor *c, const char *what, gguf_string *out) {
    attar_status status = take_u64(c, what, &out->length);
    const uint8_t *p = NULL;
    if (status == ATTAR_OK) status = take(c, out->length, what, &p);
    out->data = (const char *)p;
    return status;
}

static attar_status take_name(cursor *c, const char *what, gguf_string *out) {
    uint64_t start = c->at;
    attar_status status = take_string(c, what, out);
    if (status == ATTAR_OK && (out->length == 0 || out->length > MAX_NAME_BYTES))
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: %s at byte %" PRIu64 " must have 1 to %d bytes, got %" PRIu64, c->path, what, start,
                          MAX_NAME_BYTES, out->length);
    return status;
}

// Bytes of a fixed-size value, 0 for strings, arrays and unknown types.
static uint64_t scalar_bytes(uint32_t type) {
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

static attar_status take_array(cursor *c, gguf_kv *kv) {
    uint32_t element_type = 0;
    attar_status status = take_u32(c, "an array's element type", &element_type);
    if (status == ATTAR_OK) status = take_u64(c, "an array's length", &kv->count);
    if (status != ATTAR_OK) return status;
    kv->element_type = (gguf_type)element_type;
    kv->value = c->data + c->at;
    uint64_t bytes = scalar_bytes(element_type);
    if (bytes > 0) {
        // Compared by division: count * bytes may wrap.
        uint64_t fits = (c->size - c->at) / bytes;
        return take(c, kv->count <= fits ? kv->count * bytes : UINT64_MAX, "an array", &kv->value);
    }
    if (element_type != GGUF_STRING)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: key %.*s before byte %" PRIu64 " is an array of type %u; only scalars and strings are read",
                          c->path, NAME(kv->key), c->at, element_type);
    gguf_string element;
    for (uint64_t i = 0; i < kv->count && status == ATTAR_OK; i++)
        status = take_string(c, "a string in an array", &element);
    return status;
}

static attar_status take_kv(cursor *c, gguf_kv *kv) {
    uint32_t type = 0;
    attar_status status = take_name(c, "a metadata key", &kv->key);
    if (status == ATTAR_OK) status = take_u32(c, "a metadata type", &type);
    if (status != ATTAR_OK) return status;
    kv->type = (gguf_type)type;
    if (type == GGUF_ARRAY) return take_array(c, kv);
    if (type == GGUF_STRING) {
        gguf_string ignored;
        kv->value = c->data + c->at;
        return take_string(c, "a metadata string", &ignored);
    }
    if (scalar_bytes(type) == 0)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: key %.*s before byte %" PRIu64 " has unknown type %u",
                          c->path, NAME(kv->key), c->at, type);
    return take(c, scalar_bytes(type), "a metadata value", &kv->value);
}

static attar_status take_dims(cursor *c, gguf_tensor *tensor) {
    uint32_t n_dims = 0;
    attar_status status = take_u32(c, "a tensor's dimension count", &n_dims);
    if (status != ATTAR_OK) return status;
    if (n_dims < 1 || n_dims > 4)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: tensor %.*s must have 1 to 4 dimensions, got %u", c->path,
                          NAME(tensor->name), n_dims);
    tensor->n_dims = (int32_t)n_dims;
    uint64_t elements = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if (i < n_dims) status = take_u64(c, "a tensor's dimension", &tensor->dims[i]);
        if (status != ATTAR_OK) return status;
        if (tensor->dims[i] == 0 || tensor->dims[i] > INT64_MAX / elements)
            return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                              "%s: tensor %.*s has dimension %u of %" PRIu64 ": every dimension must be at least 1 and "
                              "their product below 2^63",
                              c->path, NAME(tensor->name), i, tensor->dims[i]);
        elements *= tensor->dims[i];
    }
    return ATTAR_OK;
}

// Fills `bytes`; the offset stays in `data` as a number until the data section's start is known.
static attar_status take_tensor(cursor *c, gguf_tensor *tensor, uint64_t *offset) {
    attar_status status = take_name(c, "a tensor name", &tensor->name);
    if (status == ATTAR_OK) status = take_dims(c, tensor);
    if (status == ATTAR_OK) status = take_u32(c, "a tensor's type", &tensor->type);
    if (status == ATTAR_OK) status = take_u64(c, "a tensor's offset", offset);
    if (status != ATTAR_OK) return status;
    attar_type_info info = attar_type_get(tensor->type);
    if (!info.name)
        return attar_fail(c->error, ATTAR_ERROR_MODEL,
                          "%s: tensor %.*s has ggml type %u, which this runtime does not read; requantise it to F32, "
                          "F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q5_K or Q6_K",
                          c->path, NAME(tensor->name), tensor->type);
    uint64_t row_bytes = attar_row_bytes(tensor->type, tensor->dims[0]);
    if (row_bytes == 0)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: tensor %.*s has rows of %" PRIu64 " values, which must be a multiple of %u for %s",
                          c->path, NAME(tensor->name), tensor->dims[0], info.block_cols, info.name);
    // take_dims bounds the product of all four by 2^63, so the product of three cannot wrap.
    uint64_t rows = tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
    if (rows > UINT64_MAX / row_bytes)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: tensor %.*s has more bytes than 2^64", c->path,
                          NAME(tensor->name));
    tensor->bytes = rows * row_bytes;
    return ATTAR_OK;
}

static int compare_strings(gguf_string a, gguf_string b) {
    int order = memcmp(a.data, b.data, a.length < b.length ? a.length : b.length);
    if (order != 0 || a.length == b.length) return order;
    return a.length < b.length ? -1 : 1;
}

// Both tables begin with their name, so one comparison serves sorting and searching.
_Static_assert(offsetof(gguf_kv, key) == 0 && offsetof(gguf_tensor, name) == 0, "names come first");

static int compare_names(const void *a, const void *b) {
    return compare_strings(*(const gguf_string *)a, *(const gguf_string *)b);
}

static attar_status sort_unique(cursor *c, void *table, uint64_t count, size_t item_bytes, const char *what) {
    if (count < 2) return ATTAR_OK;
    qsort(table, count, item_bytes, compare_names);
    for (uint64_t i = 1; i < count; i++) {
        const gguf_string *name = (const gguf_string *)((const uint8_t *)table + i * item_bytes);
        if (compare_names((const uint8_t *)name - item_bytes, name) == 0)
            return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: %s %.*s appears twice", c->path, what, NAME(*name));
    }
    return ATTAR_OK;
}

static attar_status read_header(cursor *c, gguf_file *file) {
    const uint8_t *magic;
    uint32_t version = 0;
    if (c->size < 4 || memcmp(c->data, "GGUF", 4) != 0)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: not a GGUF file: byte 0 must begin with \"GGUF\"", c->path);
    attar_status status = take(c, 4, "the magic", &magic);
    if (status == ATTAR_OK) status = take_u32(c, "the version", &version);
    if (status == ATTAR_OK) status = take_u64(c, "the tensor count", &file->n_tensors);
    if (status == ATTAR_OK) status = take_u64(c, "the metadata count", &file->n_kv);
    if (status != ATTAR_OK) return status;
    if (version != 2 && version != 3)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT, "%s: GGUF version must be 2 or 3 (little endian), got %u",
                          c->path, version);
    if (file->n_kv > c->size / MIN_KV_BYTES || file->n_tensors > c->size / MIN_TENSOR_BYTES)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: byte 8 counts %" PRIu64 " tensors and %" PRIu64 " keys, more than %" PRIu64
                          " bytes can hold",
                          c->path, file->n_tensors, file->n_kv, c->size);
    return ATTAR_OK;
}

static attar_status read_metadata(cursor *c, gguf_file *file) {
    file->kvs = calloc(file->n_kv + 1, sizeof *file->kvs);
    if (!file->kvs) return attar_fail(c->error, ATTAR_ERROR_MEMORY, "%s: no memory for its metadata", c->path);
    attar_status status = ATTAR_OK;
    for (uint64_t i = 0; i < file->n_kv && status == ATTAR_OK; i++) status = take_kv(c, &file->kvs[i]);
    if (status == ATTAR_OK) status = sort_unique(c, file->kvs, file->n_kv, sizeof *file->kvs, "metadata key");
    return status;
}

static attar_status read_alignment(cursor *c, const gguf_file *file, uint64_t *alignment) {
    const gguf_kv *kv = gguf_find(file, "general.alignment");
    int64_t value = DEFAULT_ALIGNMENT;
    if (kv && (!gguf_get_i64(kv, &value) || value < MIN_ALIGNMENT || value > MAX_ALIGNMENT || (value & (value - 1))))
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: general.alignment must be a power of two from %d to %d, got %" PRId64, c->path,
                          MIN_ALIGNMENT, MAX_ALIGNMENT, value);
    *alignment = (uint64_t)value;
    return ATTAR_OK;
}

static attar_status place_tensor(cursor *c, gguf_tensor *tensor, uint64_t offset, uint64_t start, uint64_t alignment) {
    uint64_t room = c->size > start ? c->size - start : 0;
    if (offset % alignment != 0 || offset > room || tensor->bytes > room - offset)
        return attar_fail(c->error, ATTAR_ERROR_FORMAT,
                          "%s: tensor %.*s lies at offset %" PRIu64 " with %" PRIu64 " bytes: it must be aligned to %" PRIu64
                          " and end within the %" PRIu64 " data bytes that follow byte %" PRIu64,
                          c->path, NAME(tensor->name), offset, tensor->bytes, alignment, room, start);
    tensor->data = c->data + start + offset;
    return ATTAR_OK;
}

static attar_status read_tensors(cursor *c, gguf_file *file) {
    file->tensors = calloc(file->n_tensors + 1, sizeof *file->tensors);
    uint64_t *offsets = calloc(file->n_tensors + 1, sizeof *offsets);
    attar_status status = ATTAR_OK;
    uint64_t alignment = 0;
    if (!file->tensors || !offsets)
        status = attar_fail(c->error, ATTAR_ERROR_MEMORY, "%s: no memory for its tensor table", c->path);
    if (status == ATTAR_OK) status = read_alignment(c, file, &alignment);
    for (uint64_t i = 0; i < file->n_tensors && status == ATTAR_OK; i++)
        status = take_tensor(c, &file->tensors[i], &offsets[i]);
    // `at` is at most the file size, so rounding it up cannot wrap.
    uint64_t start = status == ATTAR_OK ? (c->at + alignment - 1) / alignment * alignment : 0;
    for (uint64_t i = 0; i < file->n_tensors && status == ATTAR_OK; i++)
        status = place_tensor(c, &file->tensors[i], offsets[i], start, alignment);
    if (status == ATTAR_OK) status = sort_unique(c, file->tensors, file->n_tensors, sizeof *file->tensors, "tensor");
    free(offsets);
    return status;
}

static attar_status map_file(const char *path, gguf_file *file, attar_error *error) {
    file->path = strdup(path);
    if (!file->path) return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: out of memory", path);
    file->descriptor = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (file->descriptor < 0) return attar_fail(error, ATTAR_ERROR_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(file->descriptor, &info) != 0 || !S_ISREG(info.st_mode))
        return attar_fail(error, ATTAR_ERROR_IO, "%s: not a regular file", path);
    if (info.st_size == 0) return attar_fail(error, ATTAR_ERROR_FORMAT, "%s: empty file, not a GGUF file", path);
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file->descriptor, 0);
    if (data == MAP_FAILED) return attar_fail(error, ATTAR_ERROR_IO, "%s: cannot map: %s", path, strerror(errno));
    file->data = data;
    file->size = (uint64_t)info.st_size;
    return ATTAR_OK;
}

attar_status gguf_open_part(const char *path, gguf_file **out, attar_error *error) {
    *out = NULL;
    gguf_file *file = calloc(1, sizeof *file);
    if (!file) return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: out of memory", path);
    file->descriptor = -1;
    attar_status status = map_file(path, file, error);
    cursor c = {path, file->data, file->size, 0, error};
    if (status == ATTAR_OK) status = read_header(&c, file);
    if (status == ATTAR_OK) status = read_metadata(&c, file);
    if (status == ATTAR_OK) status = read_tensors(&c, file);
    if (status == ATTAR_OK)
        *out = file;
    else
        gguf_close(file);
    return status;
}

attar_status gguf_adopt(const char *path, gguf_file *file, gguf_file *part, attar_error *error) {
    gguf_file **parts = realloc(file->parts, (file->n_parts + 1) * sizeof(gguf_file *));
    if (parts) file->parts = parts;
    const uint64_t n = file->n_tensors + part->n_tensors;  // each counts entries in memory: the sum cannot wrap
    gguf_tensor *tensors = parts ? realloc(file->tensors, (n + 1) * sizeof *tensors) : NULL;
    if (!tensors) {
        gguf_close(part);
        return attar_fail(error, ATTAR_ERROR_MEMORY, "%s: no memory for its tensor table", path);
    }
    if (part->n_tensors > 0) memcpy(tensors + file->n_tensors, part->tensors, part->n_tensors * sizeof *tensors);
    file->tensors = tensors;
    file->n_tensors = n;
    file->parts[file->n_parts++] = part;
    cursor c = {.path = path, .error = error};
    return sort_unique(&c, tensors, n, sizeof *tensors, "tensor");
}

void gguf_close(gguf_file *file) {
    if (!file) return;
    for (uint64_t i = 0; i < file->n_parts; i++) gguf_close(file->parts[i]);
    free(file->parts);
    if (file->data) munmap((void *)(uintptr_t)file->data, (size_t)file->size);
    if (file->descriptor >= 0) close(file->descriptor);
    free(file->path);
    free(file->kvs);
    free(file->tensors);
    free(file);
}

static bool holds(const gguf_file *file, const void *at) {
    const uintptr_t begin = (uintptr_t)file->data;
    return (uintptr_t)at >= begin && (uintptr_t)at - begin < file->size;
}

attar_status gguf_read(const gguf_file *file, const void *at, void *into, uint64_t bytes, attar_error *error) {
    for (uint64_t i = 0; i < file->n_parts && !holds(file, at); i++) {
        if (holds(file->parts[i], at)) file = file->parts[i];
    }
    const uint64_t offset = (uint64_t)((uintptr_t)at - (uintptr_t)file->data);
    for (uint64_t done = 0; done < bytes;) {
        const ssize_t n = pread(file->descriptor, (uint8_t *)into + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return attar_fail(error, ATTAR_ERROR_IO, "%s: cannot read %" PRIu64 " bytes at %" PRIu64 ": %s", file->path, bytes,
                              offset, n < 0 ? strerror(errno) : "the file was cut short after it was opened");
        done += (uint64_t)n;
    }
    return ATTAR_OK;
}

uint64_t gguf_size(const gguf_file *file) {
    uint64_t size = file->size;
    for (uint64_t i = 0; i < file->n_parts; i++) size += file->parts[i]->size;
    return size;
}

const gguf_kv *gguf_find(const gguf_file *file, const char *key) {
    gguf_string name = {key, strlen(key)};
    return bsearch(&name, file->kvs, file->n_kv, sizeof *file->kvs, compare_names);
}

const gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *key) {
    gguf_string name = {key, strlen(key)};
    return bsearch(&name, file->tensors, file->n_tensors, sizeof *file->tensors, compare_names);
}

uint64_t gguf_tensor_count(const gguf_file *file) { return file->n_tensors; }

const gguf_tensor *gguf_tensor_at(const gguf_file *file, uint64_t index) { return &file->tensors[index]; }

bool gguf_get_i64(const gguf_kv *kv, int64_t *out) {
    if (!kv) return false;
    uint64_t bytes = scalar_bytes(kv->type);
    uint64_t raw = bytes ? load_le(kv->value, (int32_t)bytes) : 0;
    switch (kv->type) {
        case GGUF_U8:
        case GGUF_U16:
        case GGUF_U32:
        case GGUF_U64:
            if (raw > INT64_MAX) return false;
            *out = (int64_t)raw;
            return true;
        case GGUF_I8: *out = (int8_t)raw; return true;
        case GGUF_I16: *out = (int16_t)raw; return true;
        case GGUF_I32: *out = (int32_t)raw; return true;
        case GGUF_I64: *out = (int64_t)raw; return true;
        default: return false;
    }
}

bool gguf_get_f64(const gguf_kv *kv, double *out) {
    if (!kv) return false;
    float single;
    if (kv->type == GGUF_F32) {
        memcpy(&single, kv->value, sizeof single);
        *out = single;
    } else if (kv->type == GGUF_F64) {
        memcpy(out, kv->value, sizeof *out);
    } else {
        return false;
    }
    return true;
}

bool gguf_get_bool(const gguf_kv *kv, bool *out) {
    if (!kv || kv->type != GGUF_BOOL) return false;
    *out = *kv->value != 0;
    return true;
}

bool gguf_get_string(const gguf_kv *kv, gguf_string *out) {
    if (!kv || kv->type != GGUF_STRING) return false;
    out->length = load_le(kv->value, 8);
    out->data = (const char *)kv->value + 8;
    return true;
}

gguf_string gguf_next_string(const uint8_t **cursor_at) {
    gguf_string s = {(const char *)*cursor_at + 8, load_le(*cursor_at, 8)};
    *cursor_at += 8 + s.length;
    return s;
}
