/* What JavaScript calls: the decoder of the core, with a frame's header as a few numbers.
 *
 * Pointers have 32 bits here, and nothing is called from outside: the module has no imports. */
#include <stdlib.h>
#include <string.h>

#include "tec.h"

#define EXPORT(name) __attribute__((export_name(#name)))

/* The core asks the environment which kernel a user wants. There is none here: build.py compiles
 * with -Dgetenv=no_environment. */
char *no_environment(const char *name) {
    (void)name;
    return NULL;
}

static const char *wrong = ""; /* what the last call that failed says */
static TecFrame header;
static struct { /* header, as core.js reads it */
    int32_t axes, dtype, big_endian, column_major, model, section_count, shape[4];
    uint8_t weights[8];
} said;

EXPORT(allocate) void *allocate(uint32_t length) { return malloc(length ? length : 1); }
EXPORT(release) void release(void *bytes) { free(bytes); }
EXPORT(wrong) const char *what_is_wrong(void) { return wrong; }
EXPORT(header) const void *header_at(void) { return &said; }

EXPORT(open_model) TecModel *open_model(const uint8_t *file, uint32_t length) {
    TecModel *model = NULL;
    return tec_model_open(file, length, &model) ? NULL : model;
}

EXPORT(describe) int32_t describe(const uint8_t *frame, uint32_t length) {
    int status = tec_describe(frame, length, NULL, &header, &wrong);
    if (status) return status;
    said.axes = header.axes, said.dtype = header.dtype;
    said.big_endian = header.big_endian, said.column_major = header.column_major;
    said.model = header.model, said.section_count = (int32_t)header.section_count;
    for (int i = 0; i < 4; i++) said.shape[i] = (int32_t)header.shape[i];
    memcpy(said.weights, header.weights, sizeof said.weights);
    return TEC_OK;
}

/* Decode `count` dates, or all of them where `dates` is null. */
EXPORT(decode) int32_t decode(const uint8_t *frame, uint32_t length, const TecModel *model,
                              const int64_t *dates, uint32_t count, void *samples, uint32_t size) {
    return tec_decode(frame, length, NULL, model, dates, count, samples, size, &wrong);
}
