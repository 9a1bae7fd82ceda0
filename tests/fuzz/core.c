/* libFuzzer's harness of the core: bytes of strangers, for one target at a time.
 *
 * `TEC_FUZZ` names the target, `TEC_FUZZ_WEIGHTS` a weights file. Built and run by core.py. Checksums
 * are set to what they have to be, because a forger does that too. What is decoded lies in memory that
 * ends with the bytes, so that the sanitizers see every byte too many. A target aborts where a promise
 * is broken: what an encoder wrote does not come back, or dates one by one are not those of all. */
#include <stdio.h>
#include <stdlib.h>

#include "frame.h"
#include "planes.h"
#include "series.h"
#include "tile_map.h"

enum { LATENTS_KIND = 3, MOST_DATES = 6, ROOM = 1 << 15 };

static const TecLimits limits = {1 << 14, 1 << 6, 1 << 6, 1 << 12, 1 << 16, 1 << 16};
static TecModel *model;
static uint8_t weights[1 << 17];
static int64_t weights_length;

/* ---- what a fuzzer made up, read from the front; zeros behind its end */

typedef struct {
    const uint8_t *at, *end;
} Input;

static int byte_of(Input *in) { return in->at < in->end ? *in->at++ : 0; }
static int below(Input *in, int n) { return byte_of(in) % n; }
static int word_of(Input *in) {
    int low = byte_of(in);
    return low | byte_of(in) << 8;
}

/* A copy of up to `most` bytes in memory of its own. */
static uint8_t *copy_of(Input *in, int64_t most, int64_t *length) {
    int64_t left = in->end - in->at;
    *length = most < left ? most : left;
    uint8_t *out = malloc((size_t)*length + !*length);
    if (*length) memcpy(out, in->at, (size_t)*length);
    in->at += *length;
    return out;
}

static void put32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> 8 * i);
}

/* ---- weights: changes of a weights file, or a whole one */

static int open_changed(Input *in, TecModel **changed) {
    int64_t length;
    if (byte_of(in) & 1) {
        uint8_t *file = copy_of(in, ROOM, &length);
        int status = tec_model_open(file, length, changed);
        free(file);
        return status;
    }
    uint8_t *file = malloc((size_t)weights_length);
    memcpy(file, weights, (size_t)weights_length);
    while (in->end - in->at > 4) {
        uint32_t at = (uint32_t)word_of(in);
        at |= (uint32_t)byte_of(in) << 16;
        file[at % (uint32_t)weights_length] = (uint8_t)byte_of(in);
    }
    int status = tec_model_open(file, weights_length, changed);
    free(file);
    return status;
}

/* Noise on a ramp, the same every time. */
static void fill(int32_t *dn, int count) {
    uint32_t state = 1;
    for (int i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        dn[i] = 1000 + 20 * (i % 40) + (int32_t)(state >> 24) * (i % 7 == 0);
    }
}

/* Encode a tile with a model and decode it: to what the encoder says. */
static void there_and_back(const TecModel *m, const int32_t *dn, const uint8_t *known, const TecGrid *grids, int bands,
                           int height, int width, int quality) {
    int64_t room = tec_tile_capacity(bands, height, width), count = (int64_t)bands * height * width;
    uint8_t *section = malloc((size_t)room);
    int32_t *back = malloc((size_t)count * sizeof *back), *again = malloc((size_t)count * sizeof *again);
    uint32_t written, read;
    int64_t length = tec_tile_encode(m, dn, known, grids, bands, height, width, quality, section, room, &written, again);
    if (length >= 0 && (tec_tile_decode(m, section, length, bands, height, width, quality, back, &read) || read != written ||
                        memcmp(back, again, (size_t)count * sizeof *back)))
        abort();
    free(section), free(back), free(again);
}

static void fuzz_weights(Input in) {
    TecModel *changed;
    if (open_changed(&in, &changed)) return;
    static const TecGrid none[2];
    int32_t dn[2 * 20 * 40];
    fill(dn, 2 * 20 * 40);
    there_and_back(changed, dn, 0, none, 2, 20, 40, 4 * 4096);
    tec_model_close(changed);
}

/* ---- whole frames */

static int keep_checksum(void *to, int number, uint32_t checksum, const int32_t *dn) {
    (void)dn;
    ((uint32_t *)to)[number] = checksum;
    return TEC_OK;
}

/* Find what the latents of a frame of one tile decode to; their rows get these checksums. */
static void set_checksums(const TecFrame *h, uint8_t *const *rows, TecPiece *pieces, int count, const uint8_t *frame) {
    uint32_t checksums[MOST_DATES] = {0};
    uint8_t wanted[MOST_DATES];
    int bands = 0, height = (int)h->shape[2], width = (int)h->shape[3];
    for (int64_t b = 0; b < h->shape[1]; b++) bands += !tec_is_bounded(h, frame, b);
    if (bands < 1 || bands > MOST_BANDS || height > 512 || width > 512) return;
    int32_t *dn = malloc((size_t)bands * (size_t)height * (size_t)width * sizeof *dn);
    memset(wanted, 1, sizeof wanted);
    if (h->model == 1)
        for (int i = 0; i < count; i++)
            tec_tile_decode(model, pieces[i].bytes, pieces[i].length, bands, height, width, h->quality, dn, checksums + i);
    else if (h->model == 2)
        tec_series_decode(model, pieces, count, bands, height, width, wanted, keep_checksum, checksums);
    for (int i = 0; i < count; i++) put32(rows[i], checksums[i]);
    free(dn);
}

/* Set length and checksums of a changed frame; returns its length. */
static int64_t seal(uint8_t *frame, int64_t length, int64_t room) {
    Cursor c = {frame + 4, frame + length, 0};
    int64_t size = length > 4 ? read_varint(&c) : 0, count = 0;
    TecFrame h;
    const char *wrong;
    if (length <= 4 || c.short_of || c.end - c.at < size + 4) return length;
    uint8_t *end = frame + (c.at - frame) + size, *payload = end + 4, *rows[MOST_DATES];
    put32(end, tec_crc32(frame, end - frame));
    int status = tec_describe(frame, length, &limits, &h, &wrong);
    if (!h.table_at) return length;
    if (!status && h.total_bytes < room) {
        if (h.total_bytes > length) memset(frame + length, 0x55, (size_t)(h.total_bytes - length));
        length = h.total_bytes;
    }
    TecPiece pieces[MOST_DATES];
    Cursor t = {frame + h.table_at, end, 0};
    while (t.at < t.end) {
        int kind = (int)read_number(&t, 1);
        for (int64_t left = read_varint(&t); left && !t.short_of; left--) {
            int64_t bytes = read_varint(&t), there = frame + length - payload;
            uint8_t *row = frame + (t.at - frame);
            read_number(&t, kind == LATENTS_KIND ? 8 : 4);
            if (t.short_of) break;
            bytes = bytes < there ? bytes : there;
            put32(row, tec_crc32(payload, bytes));
            if (kind == LATENTS_KIND && count < MOST_DATES)
                rows[count] = row + 4, pieces[count++] = (TecPiece){payload, bytes, h.quality};
            payload += bytes;
        }
    }
    if (!status) set_checksums(&h, rows, pieces, (int)count, frame);
    put32(end, tec_crc32(frame, end - frame));
    return length;
}

static void fuzz_frame(Input in) {
    int choice = byte_of(&in);
    int64_t length;
    uint8_t *made = malloc(ROOM + 64), *frame = copy_of(&in, ROOM, &length);
    memcpy(made, frame, (size_t)length);
    free(frame);
    if (choice & 1) length = seal(made, length, ROOM);
    frame = malloc((size_t)length + !length);
    memcpy(frame, made, (size_t)length);
    free(made);
    const char *wrong;
    TecFrame header;
    if (!tec_describe(frame, length, &limits, &header, &wrong)) {
        int64_t dates = header.shape[0], wanted[3];
        int64_t size = header.shape[1] * header.shape[2] * header.shape[3] * size_of(header.dtype);
        uint8_t *all = malloc((size_t)(dates * size)), *some = malloc((size_t)(3 * size));
        for (int i = 0; i < 3; i++) wanted[i] = (choice >> (1 + i)) % dates;
        int status = tec_decode(frame, length, &limits, model, NULL, 0, all, dates * size, &wrong);
        if (choice & 16) {
            int other = tec_decode(frame, length, &limits, model, wanted, 3, some, 3 * size, &wrong);
            for (int i = 0; !status && i < 3; i++)
                if (other || memcmp(some + i * size, all + wanted[i] * size, (size_t)size)) abort();
        }
        free(all), free(some);
    }
    free(frame);
}

static void fuzz_header(Input in) {
    int64_t length;
    uint8_t *frame = copy_of(&in, ROOM, &length);
    Cursor c = {frame + 4, frame + length, 0};
    TecFrame header;
    const char *wrong;
    if (length > 8) {
        int64_t size = read_varint(&c);
        if (!c.short_of && c.end - c.at >= size + 4)
            put32(frame + (c.at - frame) + size, tec_crc32(frame, c.at - frame + size));
    }
    tec_describe(frame, length, &limits, &header, &wrong);
    free(frame);
}

/* ---- sections of the models */

typedef struct {
    int bands, height, width, quality;
} Size;

static Size size_in(Input *in) {
    Size s = {1 + below(in, 13), 1 + below(in, 32), 1 + below(in, 32), 0};
    s.quality = FIRST_QUALITY + word_of(in) % (LAST_QUALITY - FIRST_QUALITY + 1);
    return s;
}

static void fuzz_section(Input in) {
    Size s = size_in(&in);
    int64_t length;
    uint32_t checksum;
    uint8_t *section = copy_of(&in, ROOM, &length);
    int32_t *dn = malloc((size_t)(s.bands * s.height * s.width) * sizeof *dn);
    tec_tile_decode(model, section, length, s.bands, s.height, s.width, s.quality, dn, &checksum);
    free(section), free(dn);
}

static int ignore_date(void *to, int date, const int32_t *dn) {
    (void)to, (void)date, (void)dn;
    return TEC_OK;
}

/* Sections of the temporal model (choice 0), of the flexible one with layers as pieces (1), or as they
 * stand in a frame (2). */
static void fuzz_series(Input in) {
    int choice = below(&in, 3), count = 1 + below(&in, MOST_DATES);
    Size s = size_in(&in);
    uint32_t checksums[MOST_DATES];
    uint8_t wanted[MOST_DATES];
    TecPiece pieces[MOST_DATES];
    TecLatents latents[MOST_DATES];
    uint8_t *made[MOST_DATES];
    int mask = word_of(&in);
    for (int i = 0; i < count; i++) {
        int64_t most = word_of(&in);
        wanted[i] = mask >> i & 1;
        made[i] = copy_of(&in, most, &latents[i].length);
        pieces[i] = (TecPiece){made[i], latents[i].length, s.quality + (choice == 1 ? i % 3 * 10240 : 0)};
        if (pieces[i].quality > LAST_QUALITY) pieces[i].quality = LAST_QUALITY;
        latents[i].bytes = made[i];
        uint8_t checks[64] = {0};
        Cursor c = {made[i], made[i] + latents[i].length, 0};
        int64_t layers = read_varint(&c);
        read_varint(&c), read_varint(&c), read_number(&c, 2);
        for (int64_t k = 0; k < layers && k < 32 && !c.short_of; k++) { /* of the layers, where they should be */
            int64_t length = read_varint(&c);
            if (length < 2 || length > c.end - c.at) break;
            memcpy(checks + 2 * k, c.at, 2), c.at += length;
        }
        latents[i].checksum = tec_crc32(checks, 2 * (layers < 32 ? layers : 0));
    }
    if (choice == 2)
        tec_decode_series(model, 1, latents, count, s.bands, s.height, s.width, s.quality, wanted, ignore_date, 0);
    else tec_series_decode(model, pieces, count, s.bands, s.height, s.width, wanted, keep_checksum, checksums);
    while (count) free(made[--count]);
}

/* ---- the bound layer */

static void fuzz_bound(Input in) {
    int64_t dates = 1 + below(&in, 3), bands = 1 + below(&in, 5), height = 1 + below(&in, 40), width = 1 + below(&in, 40);
    int64_t plane = height * width, map_length, length;
    uint8_t kinds[5];
    int32_t bounds[5];
    for (int i = 0; i < bands; i++) kinds[i] = (uint8_t)below(&in, 3), bounds[i] = word_of(&in) & (below(&in, 2) ? 15 : 0xffff);
    int labelled = byte_of(&in);
    uint8_t *labels = labelled & 1 ? malloc((size_t)(dates * bands * plane)) : 0;
    for (int64_t i = 0; labels && i < dates * bands * plane; i++) labels[i] = (uint8_t)((labelled >> (1 + i / 5 % 7)) & 1);
    map_length = word_of(&in);
    uint8_t *map = copy_of(&in, map_length, &map_length), *section = copy_of(&in, ROOM, &length);
    int32_t *dn = malloc((size_t)(dates * bands * plane) * sizeof *dn);
    tec_bound_decode(section, length, map, map_length, dates, bands, height, width, labels, kinds, bounds, dn);
    free(labels), free(map), free(section), free(dn);
}

/* ---- mask, packed bytes and points */

/* Put the checksum of zlib at the end of what may be packed bytes that inflate to `size`. */
static void fuzz_mask(Input in) {
    int64_t shape[4] = {1 + below(&in, 4), 1 + below(&in, 4), 1 + below(&in, 40), 1 + below(&in, 40)}, length, more, listed;
    int choice = byte_of(&in), size = 1 << (1 + choice % 3);
    int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    const char *wrong;
    length = word_of(&in) % 512;
    uint8_t *packed = copy_of(&in, length, &length), *exact = copy_of(&in, ROOM, &more);
    uint8_t *samples = calloc((size_t)count, (size_t)size), *labels = malloc((size_t)count);
    if (choice & 8) tec_mask_labels(packed, length, shape, size, 1 << 16, labels, &listed, &wrong);
    Mask mask = {.labels = 0};
    if (!tec_mask_read(packed, length, more ? exact : 0, more, shape, size, 1 << 16, &mask, &wrong) && mask.labels)
        tec_mask_restore(&mask, shape, size, 0, samples);
    tec_mask_free(&mask);
    free(packed), free(exact), free(samples), free(labels);
}

static void fuzz_points(Input in) {
    int64_t shape[4] = {1 + below(&in, 4), 1 + below(&in, 4), 1 + below(&in, 40), 1 + below(&in, 40)}, length;
    int size = 2 << below(&in, 3);
    uint8_t *packed = copy_of(&in, ROOM, &length);
    uint8_t *samples = calloc((size_t)(shape[0] * shape[1] * shape[2] * shape[3]), (size_t)size);
    tec_points_restore(packed, length, shape, size, 0, samples);
    free(packed), free(samples);
}

static void fuzz_inflate(Input in) {
    int64_t size = word_of(&in) & 0xfff, length;
    uint8_t *packed = copy_of(&in, ROOM, &length), *out = malloc((size_t)size + !size);
    tec_unpack(packed, length, out, size);
    free(packed), free(out);
}

/* ---- samples to sections: grids are sought and proved, and what was encoded decodes */

static void fuzz_encode(Input in) {
    Size s = size_in(&in);
    int way = byte_of(&in), factor = 1 + way % 8, dates = 1 + (way >> 3) % 3, row = byte_of(&in), masked = byte_of(&in);
    if (s.bands > 4) s.bands = 1 + s.bands % 4;
    int64_t plane = (int64_t)s.height * s.width, count = dates * s.bands * plane;
    int32_t *dn = malloc((size_t)count * sizeof *dn);
    uint8_t *known = masked & 1 ? malloc((size_t)count) : 0;
    Input values = in;
    for (int64_t i = 0; i < count; i++) { /* cells of the factor, in which every so often a sample is off */
        int64_t y = i % plane / s.width, x = i % s.width;
        uint32_t cell = (uint32_t)((y + row % 8) / factor * 97 + (x + row / 8 % 8) / factor * 31 + i / plane * 7);
        int64_t here = values.end - values.at;
        int32_t value = here ? values.at[cell % (uint64_t)here] : 0;
        dn[i] = value * (1 << (row >> 6) * 4) - (way >> 7) * 1000;
        if (here && (way >> 5 & 1) && values.at[(uint64_t)i % (uint64_t)here] == 77) dn[i] += 1 << 19;
        if (known) known[i] = here ? values.at[(uint64_t)(i / 3) % (uint64_t)here] > masked : 1;
    }
    TecGrid grids[4];
    if (!tec_tile_grids(dn, known, dates, s.bands, s.height, s.width, s.quality, grids)) {
        there_and_back(model, dn, known, grids, s.bands, s.height, s.width, s.quality);
        if (dates > 1 && plane < 1600) {
            int64_t room = dates * (1 + tec_tile_capacity(s.bands, s.height, s.width)), starts[3], lengths[3];
            uint32_t written[3], read[3];
            uint8_t *out = malloc((size_t)room), wanted[3] = {1, 1, 1};
            TecPiece pieces[3];
            if (tec_series_encode(model, dn, known, grids, dates, s.bands, s.height, s.width, dates, 1, &s.quality, out,
                                  room, starts, lengths, written, 0) < 0)
                abort();
            for (int i = 0; i < dates; i++) pieces[i] = (TecPiece){out + starts[i], lengths[i], s.quality};
            if (tec_series_decode(model, pieces, dates, s.bands, s.height, s.width, wanted, keep_checksum, read) ||
                memcmp(read, written, sizeof *read * (size_t)dates))
                abort();
            free(out);
        }
    }
    free(dn), free(known);
}

static void fuzz_grid(Input in) {
    TecGrid grid = {below(&in, 2), 2 + below(&in, 7), 0, 0};
    grid.row = below(&in, grid.factor), grid.column = below(&in, grid.factor);
    int height = 1 + below(&in, 24), width = 1 + below(&in, 24), masked = byte_of(&in);
    Axis rows = {.first = 0}, columns = {.first = 0};
    if (tec_axis(&rows, grid.kind, grid.factor, grid.row, height) || tec_axis(&columns, grid.kind, grid.factor, grid.column, width))
        abort();
    int64_t count = (int64_t)height * width;
    int32_t *native = malloc((size_t)rows.values * (size_t)columns.values * sizeof *native);
    int32_t *samples = malloc((size_t)count * sizeof *samples);
    uint8_t *known = masked & 1 ? malloc((size_t)count) : 0;
    for (int64_t i = 0; i < count; i++) {
        samples[i] = (int32_t)((uint32_t)(word_of(&in) << (masked >> 4)) % (1 << 21)) * (masked & 2 ? -1 : 1);
        if (known) known[i] = (samples[i] & 7) > (masked >> 2 & 3);
    }
    if (!tec_fit(grid.kind, &rows, &columns, samples, known, native))
        tec_grid_search(grid.kind, grid.factor, grid.row, grid.column, height, width, samples, known, 1 + (masked >> 3 & 1), native);
    free(native), free(samples), free(known);
    tec_axis_end(&rows), tec_axis_end(&columns);
}

/* ---- choice */

static const struct {
    const char *name;
    void (*run)(Input);
} targets[] = {
    {"header", fuzz_header}, {"frame", fuzz_frame},     {"section", fuzz_section}, {"series", fuzz_series},
    {"bound", fuzz_bound},   {"mask", fuzz_mask},       {"points", fuzz_points},   {"inflate", fuzz_inflate},
    {"encode", fuzz_encode}, {"grid", fuzz_grid},       {"weights", fuzz_weights},
};
static void (*chosen)(Input);

int LLVMFuzzerInitialize(int *count, char ***arguments) {
    (void)count, (void)arguments;
    const char *name = getenv("TEC_FUZZ"), *path = getenv("TEC_FUZZ_WEIGHTS");
    FILE *file = path ? fopen(path, "rb") : 0;
    weights_length = file ? (int64_t)fread(weights, 1, sizeof weights, file) : 0;
    if (file) fclose(file);
    for (size_t i = 0; name && i < sizeof targets / sizeof *targets; i++)
        if (!strcmp(name, targets[i].name)) chosen = targets[i].run;
    if (!chosen || tec_model_open(weights, weights_length, &model)) {
        fprintf(stderr, "TEC_FUZZ or TEC_FUZZ_WEIGHTS is not right\n");
        exit(2);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    chosen((Input){bytes, bytes + length});
    return 0;
}
