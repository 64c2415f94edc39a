#include "unicode.h"

#include <stdbool.h>

#include "unicode_tables.h"

uint32_t attar_utf8_decode(const char *text, size_t length, size_t *used) {
    const unsigned char *p = (const unsigned char *)text;
    *used = 1;
    if (p[0] < 0x80) return p[0];
    // Lead byte -> bytes that follow, and the smallest value that may need them.
    uint32_t extra = p[0] >= 0xF0 ? 3 : p[0] >= 0xE0 ? 2 : 1;
    static const uint32_t smallest[4] = {0, 0x80, 0x800, 0x10000};
    if (p[0] < 0xC2 || p[0] > 0xF4 || extra >= length) return UNICODE_INVALID;
    uint32_t code = p[0] & (0x3Fu >> extra);
    for (uint32_t i = 1; i <= extra; i++) {
        if ((p[i] & 0xC0) != 0x80) return UNICODE_INVALID;
        code = code << 6 | (p[i] & 0x3F);
    }
    bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (code < smallest[extra] || code > 0x10FFFF || surrogate) return UNICODE_INVALID;
    *used = extra + 1;
    return code;
}

// Whether `code` lies in one of n ascending runs {first, last}.
static bool in_runs(uint32_t code, const uint32_t (*runs)[2], size_t n) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code > runs[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && code >= runs[low][0];
}

#define IN(code, table) in_runs(code, table, sizeof table / sizeof table[0])

unicode_class attar_unicode_class(uint32_t code) {
    if (code < 0x80) {  // most text
        if ((code | 0x20) - 'a' < 26) return UNICODE_LETTER;
        if (code - '0' < 10) return UNICODE_NUMBER;
        return code == ' ' || code - '\t' < 5 ? UNICODE_BLANK : UNICODE_OTHER;
    }
    if (IN(code, letters)) return UNICODE_LETTER;
    if (IN(code, numbers)) return UNICODE_NUMBER;
    return IN(code, blanks) ? UNICODE_BLANK : UNICODE_OTHER;
}
