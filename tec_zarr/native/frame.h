/* What the files of the frame decoder share. */
#ifndef TEC_FRAME_H
#define TEC_FRAME_H

#include <string.h>

#include "tec.h"

enum { UINT16, INT16, FLOAT32, FLOAT64 }; /* as in the header of a frame */

/* The labels of a chunk, and the exact values of its labelled samples. */
typedef struct {
    uint8_t *labels;      /* (time, band, y, x) */
    const uint8_t *table; /* values, little-endian, in the frame */
    int values;           /* length of the table */
    uint8_t *listed;      /* all lowest bytes of the listed values, then all second bytes, ... */
    int64_t count;        /* how many values are listed */
} Mask;

/* Bytes that are read from the front and never past their end. */
typedef struct {
    const uint8_t *at, *end;
    int short_of; /* more was asked for than is there, or a number has no proper end */
} Cursor;

static inline uint64_t read_number(Cursor *c, int bytes) {
    uint64_t value = 0;
    if (c->end - c->at < bytes) {
        c->short_of = 1;
        c->at = c->end;
        return 0;
    }
    for (int i = 0; i < bytes; i++) value |= (uint64_t)*c->at++ << 8 * i;
    return value;
}

/* Unsigned LEB128 of at most five bytes, none of them needless. */
static inline int64_t read_varint(Cursor *c) {
    int64_t value = 0;
    for (int k = 0; k < 5; k++) {
        int64_t byte = (int64_t)read_number(c, 1);
        value |= (byte & 127) << 7 * k;
        if (byte < 128) {
            if (k && !byte) c->short_of = 1;
            return value;
        }
    }
    c->short_of = 1;
    return 0;
}

/* Unpack bytes whose unpacked size is known. */
int tec_unpack(const uint8_t *packed, int64_t length, uint8_t *out, int64_t size);

/* Bytes of a sample of a dtype. */
static inline int size_of(int dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

/* Write a value of `size` bytes, given as little-endian bytes `stride` apart, to a sample. */
static inline void put_value(uint8_t *sample, const uint8_t *bytes, int64_t stride, int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint64_t)bytes[i * stride] << 8 * i;
    if (size == 2) {
        uint16_t narrow = (uint16_t)value;
        memcpy(sample, &narrow, 2);
    } else if (size == 4) {
        uint32_t narrow = (uint32_t)value;
        memcpy(sample, &narrow, 4);
    } else {
        memcpy(sample, &value, 8);
    }
}

/* Where a date is in the output, or -1; null slots: all dates in order. */
static inline int64_t slot_of(const int64_t *slots, int64_t date) { return slots ? slots[date] : date; }

/* How DN become values of an array: value = (DN + offset) * scale, but no value is nodata. */
typedef struct {
    int dtype, plain; /* plain: offset 0 and scale 1 */
    double scale, offset;
    int count; /* of nodata values */
    double nodata[255], instead[255];
} Units;

/* Find what to write instead of the nodata values of `units`; 0 if there is nothing. */
int tec_units_prepare(Units *units);

/* Convert n whole DN. */
void tec_units_convert(const Units *units, const int32_t *dn, int64_t n, void *values);

/* Write the values of a section of points to samples, of the dates that have a slot. */
int tec_points_restore(const uint8_t *packed, int64_t length, const int64_t shape[4], int size,
                       const int64_t *slots, uint8_t *samples);

/* A section of latents, and the checksum of what it decodes to. */
typedef struct {
    const uint8_t *bytes;
    int64_t length;
    uint32_t checksum;
} TecLatents;

/* Takes the DN (bands, height, width) of a date; returns a status. */
typedef int TecTakeDate(void *to, int date, const int32_t *dn);

/* Decode the wanted dates of a tile of tec-tt-s2, or of tec-flex-s2 if it is flexible. */
int tec_decode_series(const TecModel *model, int flexible, const TecLatents *latents, int dates, int bands,
                      int height, int width, int quality, const uint8_t *wanted, TecTakeDate *take, void *to);
uint32_t tec_crc32(const uint8_t *bytes, int64_t length);

/* Read the labels (time, band, y, x) of a mask section, and how many values are listed. */
int tec_mask_labels(const uint8_t *packed, int64_t length, const int64_t shape[4], int size,
                    int64_t most, uint8_t *labels, int64_t *listed, const char **wrong);

/* Read a mask section and an exact section. The mask has to be freed after an error too. */
int tec_mask_read(const uint8_t *packed, int64_t length, const uint8_t *exact,
                  int64_t exact_length, const int64_t shape[4], int size, int64_t most, Mask *mask,
                  const char **wrong);

/* Write the exact values of the dates that have a slot to samples (slots, band, y, x). */
void tec_mask_restore(const Mask *mask, const int64_t shape[4], int size, const int64_t *slots,
                      uint8_t *samples);
void tec_mask_free(Mask *mask);

#endif
