/* npy.c: every byte of a file is checked before it is believed. */
#include "npy.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct element {
    const char *dtype, *descr;
    size_t bytes;
} element;

static const element ELEMENTS[] = {
    {"f32", "<f4", 4}, {"f64", "<f8", 8}, {"f16", "<f2", 2}, {"bf16", "<V2", 2}, {"i64", "<i8", 8}, {"i32", "<i4", 4},
    {"i16", "<i2", 2}, {"i8", "|i1", 1}, {"u8", "|u1", 1}, {"bool", "|b1", 1}, {"c64", "<c8", 8}, {"c128", "<c16", 16},
};
enum { ELEMENT_COUNT = sizeof ELEMENTS / sizeof *ELEMENTS };

static const element *find(const char *dtype) {
    for (int i = 0; i < ELEMENT_COUNT; i++)
        if (!strcmp(ELEMENTS[i].dtype, dtype)) return &ELEMENTS[i];
    return NULL;
}

size_t npy_element_bytes(const char *dtype) { return find(dtype) ? find(dtype)->bytes : 0; }

const char *npy_descr(const char *dtype) { return find(dtype) ? find(dtype)->descr : NULL; }

int npy_holds(const char *descr, const char *dtype) {
    const element *expected = find(dtype);
    if (!expected) return 0;
    if (!strcmp(dtype, "bf16")) return !strcmp(descr, "<V2") || !strcmp(descr, "|V2") || !strcmp(descr, "<u2");
    return !strcmp(descr, expected->descr) || (expected->bytes == 1 && !strcmp(descr + 1, expected->descr + 1));
}

/* The header is a Python dict. A cursor over it never moves past its end. */

typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_spaces(cursor *text) {
    while (text->at < text->end && (*text->at == ' ' || *text->at == '\n')) text->at++;
}

static bool take(cursor *text, const char *token) {
    size_t length = strlen(token);
    skip_spaces(text);
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, token, length)) return false;
    text->at += length;
    return true;
}

static bool take_number(cursor *text, int64_t *number) {
    skip_spaces(text);
    const char *first = text->at;
    for (*number = 0; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++)
        if (__builtin_mul_overflow(*number, 10, number) || __builtin_add_overflow(*number, *text->at - '0', number))
            return false;
    return text->at > first;
}

static bool take_string(cursor *text, char *into, size_t room) {
    if (!take(text, "'")) return false;
    size_t length = 0;
    for (; text->at < text->end && *text->at != '\'' && length + 1 < room; text->at++) into[length++] = *text->at;
    into[length] = 0;
    return take(text, "'");
}

static bool take_shape(cursor *text, npy *array) {
    if (!take(text, "(")) return false;
    for (array->rank = 0; !take(text, ")"); array->rank++) {
        if (array->rank == NPY_MAX_RANK || !take_number(text, &array->dims[array->rank])) return false;
        if (!take(text, ",")) return array->rank++, take(text, ")");
    }
    return true;
}

static const char *parse_dict(cursor text, npy *array) {
    char key[16];
    bool descr = false, order = false, shape = false;
    bool more = take(&text, "{");
    for (; more && take_string(&text, key, sizeof key) && take(&text, ":"); more = take(&text, ",")) {
        if (!strcmp(key, "descr") && !descr)
            descr = take_string(&text, array->descr, sizeof array->descr);
        else if (!strcmp(key, "shape") && !shape)
            shape = take_shape(&text, array);
        else if (strcmp(key, "fortran_order") || order)
            return "its header has a field that is not NumPy's";
        else if (!(order = take(&text, "False")))
            return "it is in Fortran order; save it with numpy.ascontiguousarray";
    }
    if (!descr || !order || !shape || !take(&text, "}")) return "its header cannot be read";
    skip_spaces(&text);
    return text.at == text.end ? NULL : "its header has something after the dict";
}

/* Elements times bytes, which must be what the file holds. */
static const char *check_size(npy *array) {
    size_t element = 0, total;
    for (int i = 0; i < ELEMENT_COUNT; i++)
        if (npy_holds(array->descr, ELEMENTS[i].dtype)) element = ELEMENTS[i].bytes;
    if (!element) return array->descr[0] == '>' ? "it is big endian" : "its elements have a type that no model takes";
    total = element;
    for (int32_t i = 0; i < array->rank; i++)
        if (__builtin_mul_overflow(total, (size_t)array->dims[i], &total)) return "its shape overflows 64 bits";
    return total == array->bytes ? NULL : "its size does not match its shape";
}

const char *npy_parse(const void *content, size_t size, npy *array) {
    const unsigned char *bytes = content;
    memset(array, 0, sizeof *array);
    if (size < 12 || memcmp(bytes, "\x93NUMPY", 6)) return "it is not an .npy file";
    if (bytes[6] < 1 || bytes[6] > 3) return "its version is unknown";
    size_t start = bytes[6] == 1 ? 10 : 12, length = bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] > 1) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (length > size - start) return "it ends inside its header";
    const char *header = (const char *)bytes + start;
    const char *wrong = parse_dict((cursor){header, header + length}, array);
    if (wrong) return wrong;
    array->data = header + length;
    array->bytes = size - start - length;
    return check_size(array);
}

/* The header is filled up with spaces so that the data starts at a multiple of 64 bytes. */
static bool write_header(FILE *file, const char *descr, int32_t rank, const int64_t *dims) {
    char header[64 + 24 * NPY_MAX_RANK + 64];
    int length = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int32_t i = 0; i < rank; i++)
        length += snprintf(header + length, sizeof header - (size_t)length, i ? ", %lld" : "%lld", (long long)dims[i]);
    length += snprintf(header + length, sizeof header - (size_t)length, rank == 1 ? ",), }" : "), }");
    while ((10 + length + 1) % 64) header[length++] = ' ';
    header[length++] = '\n';
    const unsigned char start[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, length & 255, (unsigned char)(length >> 8)};
    return fwrite(start, sizeof start, 1, file) == 1 && fwrite(header, (size_t)length, 1, file) == 1;
}

int npy_write(const char *path, const char *dtype, int32_t rank, const int64_t *dims, const void *data) {
    size_t bytes = npy_element_bytes(dtype);
    if (!bytes || rank > NPY_MAX_RANK) return EINVAL;
    for (int32_t i = 0; i < rank; i++) bytes *= (size_t)dims[i];
    FILE *file = fopen(path, "wb");
    if (!file) return errno;
    bool written = write_header(file, npy_descr(dtype), rank, dims) && fwrite(data, 1, bytes, file) == bytes;
    int code = written ? 0 : errno;
    return fclose(file) && !code ? errno : code;
}
