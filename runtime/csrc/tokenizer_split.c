#include "tokenizer_split.h"

#include <stdint.h>
#include <string.h>

#include "unicode.h"

bool attar_split_rule(const char *name, size_t length, split_rule *out) {
    static const struct {
        const char *name;
        split_rule rule;
    } rules[] = {
        {"gpt-2", SPLIT_GPT2},       {"default", SPLIT_GPT2}, {"smollm", SPLIT_SMOLLM},
        {"llama-bpe", SPLIT_LLAMA3}, {"qwen2", SPLIT_QWEN2},
    };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (strlen(rules[i].name) == length && memcmp(rules[i].name, name, length) == 0) {
            *out = rules[i].rule;
            return true;
        }
    }
    return false;
}

// A stretch of text; the functions below return byte offsets into it.
typedef struct {
    const char *text;
    size_t end;
} span;

static uint32_t code_at(span s, size_t at, size_t *next) {
    size_t used = 0;
    uint32_t code = attar_utf8_decode(s.text + at, s.end - at, &used);
    *next = at + used;
    return code;
}

static unicode_class class_at(span s, size_t at, size_t *next) { return attar_unicode_class(code_at(s, at, next)); }

// End of the run of `class` that starts at `at`, of at most `most` characters.
static size_t run_of(span s, size_t at, unicode_class class, size_t most) {
    size_t next = at;
    for (size_t n = 0; n < most && at < s.end && class_at(s, at, &next) == class; n++) at = next;
    return at;
}

static bool is_newline(char c) { return c == '\n' || c == '\r'; }

static size_t run_of_newlines(span s, size_t at) {
    while (at < s.end && is_newline(s.text[at])) at++;
    return at;
}

// End of an English contraction ('s 't 're 've 'm 'll 'd) at `at`, or `at`.
static size_t contraction(span s, size_t at, bool ignore_case) {
    if (s.text[at] != '\'' || at + 1 >= s.end) return at;
    char a = s.text[at + 1], b = at + 2 < s.end ? s.text[at + 2] : '\0';
    if (ignore_case) {
        // U+017F, the long s, folds to s.
        if (a == '\xC5' && b == '\xBF') return at + 3;
        if (a >= 'A' && a <= 'Z') a = (char)(a | 0x20);
        if (b >= 'A' && b <= 'Z') b = (char)(b | 0x20);
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
    bool two = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l');
    return two ? at + 3 : at;
}

// \s+(?!\S)|\s+ at a blank: all blanks at the end of the span, else all but the last, which belongs to the next word.
static size_t blanks(span s, size_t at) {
    size_t end = at, last = at, next = at;
    while (end < s.end && class_at(s, end, &next) == UNICODE_BLANK) {
        last = end;
        end = next;
    }
    return end == s.end || last == at ? end : last;
}

static size_t gpt2_word(span s, size_t at) {
    size_t end = contraction(s, at, false);
    if (end > at) return end;
    size_t start = s.text[at] == ' ' && at + 1 < s.end ? at + 1 : at, next = 0;
    unicode_class class = class_at(s, start, &next);
    return class == UNICODE_BLANK ? blanks(s, at) : run_of(s, start, class, SIZE_MAX);
}

// \s*[\r\n]+ at a blank: through the last newline of the run of blanks, or `at` if there is none.
static size_t blanks_through_newline(span s, size_t at) {
    size_t found = at, next = at;
    for (size_t i = at; i < s.end && class_at(s, i, &next) == UNICODE_BLANK; i = next) {
        if (is_newline(s.text[i])) found = next;
    }
    return found;
}

static size_t llama3_word(span s, size_t at, size_t most_digits) {
    size_t end = contraction(s, at, true);
    if (end > at) return end;
    size_t second = 0, next = 0;
    unicode_class class = class_at(s, at, &second);
    if (class == UNICODE_LETTER) return run_of(s, at, UNICODE_LETTER, SIZE_MAX);
    if (class == UNICODE_NUMBER) return run_of(s, at, UNICODE_NUMBER, most_digits);
    unicode_class follows = second < s.end ? class_at(s, second, &next) : UNICODE_BLANK;
    if (!is_newline(s.text[at]) && follows == UNICODE_LETTER) return run_of(s, second, UNICODE_LETTER, SIZE_MAX);
    if (class == UNICODE_OTHER) return run_of_newlines(s, run_of(s, at, UNICODE_OTHER, SIZE_MAX));
    if (s.text[at] == ' ' && follows == UNICODE_OTHER)
        return run_of_newlines(s, run_of(s, second, UNICODE_OTHER, SIZE_MAX));
    end = blanks_through_newline(s, at);
    return end > at ? end : blanks(s, at);
}

static size_t smollm_word(splitter *s) {
    span whole = {s->text, s->length};
    size_t next = 0;
    if (s->at >= s->limit) {  // a new stretch: find its end once
        if (class_at(whole, s->at, &next) == UNICODE_NUMBER) return next;
        s->limit = s->at;
        while (s->limit < s->length && class_at(whole, s->limit, &next) != UNICODE_NUMBER) s->limit = next;
    }
    return gpt2_word((span){s->text, s->limit}, s->at);
}

size_t attar_split_next(splitter *s) {
    if (s->at >= s->length) return 0;
    span whole = {s->text, s->length};
    size_t start = s->at, end = start;
    switch (s->rule) {
        case SPLIT_GPT2: end = gpt2_word(whole, start); break;
        case SPLIT_SMOLLM: end = smollm_word(s); break;
        case SPLIT_LLAMA3: end = llama3_word(whole, start, 3); break;
        case SPLIT_QWEN2: end = llama3_word(whole, start, 1); break;
    }
    s->at = end;
    return end - start;
}
