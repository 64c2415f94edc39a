// unicode.h: UTF-8 decoding and the few character classes that tokenizers' splitting rules use.
#ifndef ATTAR_UNICODE_H
#define ATTAR_UNICODE_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    UNICODE_OTHER,   // punctuation, marks, controls, unassigned, and bytes that are not UTF-8
    UNICODE_LETTER,  // \p{L}
    UNICODE_NUMBER,  // \p{N}
    UNICODE_BLANK,   // \s
} unicode_class;

#define UNICODE_INVALID 0xFFFFFFFFu  // stands for one byte that is not part of well-formed UTF-8

// Decodes the character at text[0]; length >= 1. *used is its bytes, 1 to 4. Overlong forms, surrogates, values above
// U+10FFFF and truncated sequences give UNICODE_INVALID for their first byte alone.
uint32_t attar_utf8_decode(const char *text, size_t length, size_t *used);

unicode_class attar_unicode_class(uint32_t code);

#endif
