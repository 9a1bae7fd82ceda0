/* One plane of the bound layer; planes.c. */
#ifndef TEC_PLANES_H
#define TEC_PLANES_H

#include <stdint.h>

#include "range_coder.h"
#include "tec.h"

#define VALUE_BITS 26 /* of the values of a plane */
#define MOST_COUNT 255
#define MARGIN 3 /* samples beyond each edge of a plane */
#define SCALES 64 /* classes of the expected size of a residual */
#define CENTRE 20 /* the class of a size of one step; four classes are an octave */
#define FIRST_COUNT 32 /* updates that the first probabilities count for */
#define WIDE 4 /* reference planes of which the neighbours of a sample are seen too */
#define FAR 4 /* reference planes of which only the sample itself is seen */
#define FEATURES (6 + 2 * WIDE)

/* The probability of a one, of 65536, and how often it was updated. */
typedef struct {
    uint16_t one, count;
} Bit;

/* The decisions of which a residual consists, for each class of its expected size. */
typedef struct {
    Bit zero[SCALES], sign[SCALES][8], magnitude[SCALES][64];
} Symbols;

/* What is learnt from plane to plane. */
typedef struct {
    Symbols residuals, corrections;
    int32_t weights[WIDE + 1][FEATURES + 1]; /* of the expected size; the last one is the constant */
} Learnt;

/* Encodes if `encoding`, else decodes; so one function does both. */
typedef struct {
    int encoding;
    Encoder e;
    Decoder d;
    int32_t rates[MOST_COUNT + 1]; /* of a bit that was updated so often, of 65536 */
} Coder;

void tec_coder_begin(Coder *coder);

/* A coded plane with margins: its values over its lowest one in units of 2^coarse, and the sizes of
 * its residuals, in sixteenths of an octave. `shift` scales differences of values. */
typedef struct {
    int height, width, coarse, shift;
    int32_t *values;
    uint8_t *sizes;
} Plane;

typedef struct {
    Plane *plane;
    const Plane *wide[WIDE], *far[FAR];
    int wide_count, far_count;
    const uint8_t *skipped;  /* (height, width): not 0 where nothing is coded; or null */
    uint32_t bound;
    const int32_t *bounds;   /* (height, width), or null */
    int64_t low, high;
    const int32_t *wanted;   /* encoder: (height, width) */
    uint32_t blended;        /* encoder: the bound of samples that are blended of four values, or 0 */
    int32_t *decoded;        /* (height, width) */
} Task;

void tec_learnt_begin(Learnt *learnt);

/* As numbers, for what makes planes_table.h: of the residuals for each class the chances of a zero and of
 * the nodes 1 to 63, of the corrections those of a zero; as many times how often each was updated; weights. */
#define LEARNT_NUMBERS (2 * SCALES * 65 + (WIDE + 1) * (FEATURES + 1))
void tec_learnt_from(Learnt *learnt, const int32_t *numbers);
void tec_learnt_into(const Learnt *learnt, int32_t *numbers);

int tec_plane_begin(Plane *plane, int height, int width); /* reserves memory, or makes it larger */
void tec_plane_end(Plane *plane);
void tec_plane_margins(Plane *plane);

/* Encode or decode a plane. */
int tec_plane_code(Coder *coder, Learnt *learnt, const Task *task);

/* Numbers of 0 .. 2^bits - 1, and of 0 .. count - 1, all equally likely. */
uint32_t tec_code_bits(Coder *coder, uint32_t value, int bits);
uint64_t tec_code_uniform(Coder *coder, uint64_t value, uint64_t count);

/* A residual whose expected size is of class `scale`; `side` tells on which side it is likely. */
int64_t tec_code_symbol(Coder *coder, Symbols *symbols, int scale, int side, int64_t value);

int tec_log_of(uint64_t n); /* of 1 or more, in sixteenths of an octave */

static inline int64_t clip(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

static inline int bits_in(uint64_t n) {
#if defined(__GNUC__)
    return n ? 64 - __builtin_clzll(n) : 0;
#else
    int bits = 0;
    while (bits < 64 && n >> bits) bits++;
    return bits;
#endif
}

static inline int32_t *value_at(const Plane *p, int y, int x) {
    return p->values + (int64_t)(y + MARGIN) * (p->width + 2 * MARGIN) + x + MARGIN;
}

static inline uint8_t *size_at(const Plane *p, int y, int x) {
    return p->sizes + (int64_t)(y + MARGIN) * (p->width + 2 * MARGIN) + x + MARGIN;
}

/* ---- bound.c */

static inline int tec_too_large(int64_t dates, int64_t bands, int64_t height, int64_t width) {
    const int64_t most = (int64_t)1 << 30;
    return dates > most || bands > 65536 || height > most || width > most || height * width > most ||
           dates * bands > most || dates * bands * (height * width >> 8) > most;
}

/* Encode a whole array. A band whose bound is negative has that of each of its samples. `natives` are
 * those of the bands with grids, all dates of one after another; `near` are three positions in `order`
 * for each position, -1 for none. Returns the length of the section; `decoded` is what it decodes to.
 * `learnt`, or null: where learning begins, and after that where it ended; no decoder would follow. */
int64_t tec_bound_encode(const int32_t *wanted, int64_t dates, int64_t bands, int64_t height, int64_t width,
                         const uint8_t *labels, const int32_t *bounds, const int32_t *sample_bounds,
                         const TecGrid *grids, const int32_t *natives, const int32_t *order,
                         const int32_t *near, int32_t *decoded, uint8_t *section, int64_t capacity,
                         int32_t *learnt);

int tec_bound_layer(const uint8_t *section, int64_t length, int64_t dates, int64_t bands, int64_t height,
                    int64_t width, const uint8_t *labels, const int32_t *bounds,
                    const int32_t *sample_bounds, int32_t *dn);

#endif
