/* json.h: JSON on standard output, indented; commas come by themselves. */
#ifndef COIL_JSON_H
#define COIL_JSON_H

#include <stdint.h>
#include <stdio.h>

void json_to(FILE *file); /* instead of standard output */

/* `key` is NULL inside a list and at the top. */
void json_open(const char *key, char bracket); /* '{' or '[' */
void json_close(char bracket);                 /* '}' or ']' */
void json_string(const char *key, const char *text);
void json_integer(const char *key, int64_t number);
void json_number(const char *key, double seconds);
void json_dims(const char *key, int32_t rank, const int64_t *dims);

#endif
