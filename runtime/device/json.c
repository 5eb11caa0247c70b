/* json.c: see json.h. */
#include "json.h"

static FILE *stream; /* NULL: standard output */
static int depth, items; /* items: written so far in the open object or list */

static FILE *out(void) { return stream ? stream : stdout; }

void json_to(FILE *file) { stream = file; }

static void string(const char *text) {
    putc('"', out());
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c < 32)
            fprintf(out(), "\\u%04x", *c);
        else
            fprintf(out(), *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    putc('"', out());
}

static void item(const char *key) {
    if (items++) putc(',', out());
    if (depth) fprintf(out(), "\n%*s", 2 * depth, "");
    if (key) string(key), fprintf(out(), ": ");
}

void json_open(const char *key, char bracket) {
    item(key);
    putc(bracket, out());
    depth++, items = 0;
}

void json_close(char bracket) {
    depth--;
    if (items) fprintf(out(), "\n%*s", 2 * depth, "");
    putc(bracket, out());
    items = 1; /* of the enclosing one, which now has at least this */
    if (!depth) putc('\n', out());
}

void json_string(const char *key, const char *text) {
    item(key);
    string(text);
}

void json_integer(const char *key, int64_t number) {
    item(key);
    fprintf(out(), "%lld", (long long)number);
}

void json_number(const char *key, double seconds) {
    item(key);
    fprintf(out(), "%.9f", seconds);
}

void json_dims(const char *key, int32_t rank, const int64_t *dims) {
    item(key);
    putc('[', out());
    for (int32_t i = 0; i < rank; i++) fprintf(out(), i ? ", %lld" : "%lld", (long long)dims[i]);
    putc(']', out());
}
