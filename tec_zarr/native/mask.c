/* The mask of a frame: which samples the model does not code, and their exact values. */
#include "frame.h"

#include <stdlib.h>
#include <string.h>

enum { CLEAR, UNIFORM, SHARED, PER_BAND, AS_BEFORE, RUN_AS_BEFORE };

/* One entry of the list of dates. */
typedef struct {
    int mode;
    uint8_t label;
    int64_t run;
} Dates;

/* Read the next entry; 0 if it cannot be. */
static int next_dates(Cursor *c, int64_t left, int first, Dates *dates) {
    dates->mode = (int)read_number(c, 1);
    dates->label = dates->mode == UNIFORM ? (uint8_t)read_number(c, 1) : 0;
    dates->run = dates->mode == RUN_AS_BEFORE ? read_varint(c) : 1;
    if (c->short_of || dates->mode > RUN_AS_BEFORE || dates->run < 1 || dates->run > left) return 0;
    return !first || dates->mode < AS_BEFORE;
}

static int64_t planes_of(int mode, int64_t bands) {
    return mode == SHARED ? 1 : mode == PER_BAND ? bands : 0;
}

static int bits_of(int value) {
    int bits = 0;
    while (value >> bits) bits++;
    return bits;
}

/* Make a plane of labels (rows, columns) of its bit planes. */
static void read_plane(const uint8_t *bits, int depth, int64_t rows, int64_t columns,
                       uint8_t *plane) {
    int64_t pixels = rows * columns, bytes = (pixels + 7) / 8;
    memset(plane, 0, (size_t)pixels);
    for (int k = 0; k < depth; k++, bits += bytes)
        for (int64_t i = 0; i < bytes; i++) {
            if (!bits[i]) continue;
            int64_t some = pixels - 8 * i < 8 ? pixels - 8 * i : 8;
            for (int64_t j = 0; j < some; j++)
                plane[8 * i + j] |= (uint8_t)((bits[i] >> (7 - j) & 1) << k);
        }
    for (int64_t i = columns; i < pixels; i++) plane[i] ^= plane[i - columns];
}

/* Write the labels of all dates; their list is known to be sound. */
static void read_labels(Cursor c, const uint8_t *bits, int depth, const int64_t shape[4],
                        uint8_t *labels) {
    int64_t plane = shape[2] * shape[3], date = shape[1] * plane;
    int64_t bytes = depth * ((plane + 7) / 8);
    Dates dates;
    for (int64_t t = 0; t < shape[0]; t += dates.run) {
        uint8_t *to = labels + t * date;
        next_dates(&c, shape[0] - t, !t, &dates);
        int64_t planes = planes_of(dates.mode, shape[1]);
        for (int64_t i = 0; i < planes; i++, bits += bytes)
            read_plane(bits, depth, shape[2], shape[3], to + i * plane);
        if (planes == 1)
            for (int64_t i = 1; i < shape[1]; i++) memcpy(to + i * plane, to, (size_t)plane);
        else if (dates.mode >= AS_BEFORE)
            for (int64_t i = 0; i < dates.run; i++) memcpy(to + i * date, to - date, (size_t)date);
        else if (!planes) memset(to, dates.label, (size_t)date);
    }
}

int tec_mask_labels(const uint8_t *packed, int64_t length, const int64_t shape[4], int size,
                    int64_t most, uint8_t *labels, int64_t *listed, const char **wrong) {
    int64_t plane = shape[2] * shape[3], samples = shape[0] * shape[1] * plane;
    Cursor c = {packed, packed + length, 0};
    *wrong = "the mask section cannot be read";
    int values = (int)read_number(&c, 1);
    if (c.short_of || values > 32 || c.end - c.at < values * size) return TEC_DAMAGED;
    c.at += values * size;
    int depth = bits_of(values + 1);
    Cursor first = c;
    Dates dates;
    int64_t planes = 0;
    for (int64_t t = 0; t < shape[0]; t += dates.run) {
        if (!next_dates(&c, shape[0] - t, !t, &dates)) return TEC_DAMAGED;
        planes += planes_of(dates.mode, shape[1]);
    }
    int64_t bytes = planes * depth * ((plane + 7) / 8);
    if (bytes > most) {
        *wrong = "the mask inflates to more bytes than the limit";
        return TEC_OVER_LIMIT;
    }
    uint8_t *bits = malloc((size_t)bytes + 1);
    if (!bits) {
        *wrong = "no memory for the mask of a chunk";
        return TEC_NO_MEMORY;
    }
    int status = tec_unpack(c.at, c.end - c.at, bits, bytes);
    if (!status) read_labels(first, bits, depth, shape, labels);
    free(bits);
    if (status) return status;
    uint8_t highest = 0, last = (uint8_t)(values + 1);
    int64_t count = 0;
    for (int64_t start = 0; start < samples; start += 1 << 16) {
        int64_t end = samples - start < 1 << 16 ? samples : start + (1 << 16);
        uint32_t some = 0;
        for (int64_t i = start; i < end; i++) {
            highest = labels[i] > highest ? labels[i] : highest;
            some += labels[i] == last;
        }
        count += some;
    }
    *listed = count;
    return highest > last ? TEC_DAMAGED : TEC_OK;
}

int tec_mask_read(const uint8_t *packed, int64_t length, const uint8_t *exact,
                  int64_t exact_length, const int64_t shape[4], int size, int64_t most, Mask *mask,
                  const char **wrong) {
    memset(mask, 0, sizeof *mask);
    *wrong = "no memory for the labels of a chunk";
    mask->labels = malloc((size_t)(shape[0] * shape[1] * shape[2] * shape[3]));
    if (!mask->labels) return TEC_NO_MEMORY;
    int status = tec_mask_labels(packed, length, shape, size, most, mask->labels, &mask->count, wrong);
    if (status) return status;
    mask->values = packed[0];
    mask->table = packed + 1;
    if (mask->count > most / size) {
        *wrong = "the exact values inflate to more bytes than the limit";
        return TEC_OVER_LIMIT;
    }
    *wrong = "no memory for the exact values of a chunk";
    mask->listed = malloc((size_t)(mask->count * size) + 1);
    if (!mask->listed) return TEC_NO_MEMORY;
    *wrong = "the exact section does not fit the mask";
    return tec_unpack(exact, exact_length, mask->listed, mask->count * size);
}

void tec_mask_free(Mask *mask) {
    free(mask->labels);
    free(mask->listed);
    mask->labels = mask->listed = 0;
}

void tec_mask_restore(const Mask *mask, const int64_t shape[4], int size, const int64_t *slots,
                      uint8_t *samples) {
    int64_t date = shape[1] * shape[2] * shape[3], listed = 0;
    for (int64_t t = 0; t < shape[0]; t++) {
        const uint8_t *labels = mask->labels + t * date;
        int64_t slot = slot_of(slots, t);
        uint8_t *to = slot < 0 ? 0 : samples + slot * date * size;
        for (int64_t i = 0; i < date; i++) {
            uint64_t eight = 1;
            if (date - i >= 8) memcpy(&eight, labels + i, 8);
            if (!eight) i += 7; /* none of them is labelled */
            int label = labels[i];
            if (!label) continue;
            const uint8_t *value = mask->table + (label - 1) * size;
            int64_t stride = 1;
            if (label > mask->values) value = mask->listed + listed++, stride = mask->count;
            if (to) put_value(to + i * size, value, stride, size);
        }
    }
}
