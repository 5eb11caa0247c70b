/* json.c: see json.h. */
#include "json.h"

#include <stdio.h>

static int depth, items; /* items: written so far in the open object or list */

static void string(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c < 32)
            printf("\\u%04x", *c);
        else
            printf(*c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    putchar('"');
}

static void item(const char *key) {
    if (items++) putchar(',');
    if (depth) printf("\n%*s", 2 * depth, "");
    if (key) string(key), printf(": ");
}

void json_open(const char *key, char bracket) {
    item(key);
    putchar(bracket);
    depth++, items = 0;
}

void json_close(char bracket) {
    depth--;
    if (items) printf("\n%*s", 2 * depth, "");
    putchar(bracket);
    items = 1; /* of the enclosing one, which now has at least this */
    if (!depth) putchar('\n');
}

void json_string(const char *key, const char *text) {
    item(key);
    string(text);
}

void json_integer(const char *key, int64_t number) {
    item(key);
    printf("%lld", (long long)number);
}

void json_seconds(const char *key, double seconds) {
    item(key);
    printf("%.9f", seconds);
}

void json_dims(const char *key, int32_t rank, const int64_t *dims) {
    item(key);
    putchar('[');
    for (int32_t i = 0; i < rank; i++) printf(i ? ", %lld" : "%lld", (long long)dims[i]);
    putchar(']');
}
