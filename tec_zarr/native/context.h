/* The context model of coefficients: what a decoder knows becomes the table of the next symbol.
 *
 * A small network of whole numbers has 20 inputs of a value, each the logarithm of a sum of
 * magnitudes, and 8 that are the same for a plane. Its result is an index, which names a table of
 * frequencies and how many low bits of a symbol are coded without a table. Encoders, decoders and
 * training share this unit, so that they cannot differ.
 */
#ifndef TEC_CONTEXT_H
#define TEC_CONTEXT_H

#include <stdint.h>
#include <string.h>

#include "range_coder.h"

#define MOST_BANDS 31
#define MOST_SIZE 16
#define CLASSES 5
#define SCAN_INPUTS 4   /* what the scan of a plane changes */
#define STILL_INPUTS 16 /* what was there before the plane */
#define FIXED_INPUTS 8  /* the same for a whole plane */
#define INPUTS (SCAN_INPUTS + STILL_INPUTS + FIXED_INPUTS)
#define HIDDEN 32
#define TABLES 40
#define REACH 32            /* symbols of a table: -REACH .. REACH; the ends escape */
#define SYMBOLS (2 * REACH + 1)
#define PLAIN 28            /* tables from here on code symbols without their low bits */
#define INDEXES 96          /* of which the last mean many low bits */
#define MOST_VALUE ((1 << 24) - 1)
#define MOST_SUM 4095       /* of magnitudes: larger ones have the same logarithm */

/* The weights, in the layout in which Python fills them in. */
typedef struct Context {
    int16_t first[INPUTS][HIDDEN];   /* weights are of 8 bits */
    int32_t first_bias[HIDDEN];
    int16_t second[HIDDEN][HIDDEN];  /* [unit][input] */
    int32_t second_bias[HIDDEN];
    int16_t last[HIDDEN];
    int32_t last_bias;
    int32_t shifts[3];
    int16_t mean[4][MOST_BANDS];     /* of (0, 0): weights in 1/256 of w, n, nw, ne, by component */
    uint32_t starts[TABLES][SYMBOLS + 1]; /* cumulative frequencies; the last is 65536 */
    int32_t costs[TABLES][SYMBOLS];  /* of each symbol, in 1/256 bit */
} Context;

/* ---- network */

#define QUADS ((SCAN_INPUTS + STILL_INPUTS) / 4)

/* The still input at each place: those with large weights lie apart, so that sums of products that
 * a kernel adds in 16 bits have one of them each. */
static const uint8_t still_at[STILL_INPUTS] = {0, 4, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2, 14, 3, 15};

typedef struct Net Net;

/* Evaluate the network for `count` values: out[i] is the index for the inputs still[i], scan[i]. */
typedef void Evaluate(const Net *net, const uint8_t (*still)[STILL_INPUTS],
                      const uint8_t (*scan)[SCAN_INPUTS], int count, uint8_t *out);

/* Take the logarithms of `count` sums, which are 0 .. MOST_SUM. */
typedef void TakeLogs(const Net *net, const int16_t *sums, size_t count, uint8_t *out);

/* The network as a kernel wants it: units and their inputs lie in an order of the kernel's own,
 * four inputs of a unit together. */
struct Net {
    int8_t first[QUADS][HIDDEN][4];       /* still inputs in the order of still_at, then the scan's */
    int8_t second[HIDDEN / 4][HIDDEN][4];
    int16_t wide_first[4 * QUADS][HIDDEN], wide_second[HIDDEN][HIDDEN]; /* the same, see wide_at */
    int16_t fixed[FIXED_INPUTS][HIDDEN];  /* weights of the first layer */
    int32_t first_bias[HIDDEN];
    int32_t base[HIDDEN];                 /* of the plane: bias and fixed inputs */
    int32_t second_bias[HIDDEN];
    int32_t last[HIDDEN];
    int32_t last_bias;
    int shifts[3];
    Evaluate *evaluate;
    TakeLogs *take_logs;
    uint8_t log[MOST_SUM + 1]; /* of a sum of magnitudes */
};

/* Lay out a network for the fastest kernel of this processor, or the one that the environment
 * variable TEC_NATIVE names. All kernels give the same. */
void tec_net(Net *net, const Context *context);

/* The name of kernel `number`, or null beyond the last; and whether this processor has it. */
const char *tec_kernel(int number, int *here);

/* Set the inputs that are the same for a whole plane. */
void tec_net_plane(Net *net, const uint8_t fixed[FIXED_INPUTS]);

/* ---- symbols */

static inline int low_bits(int index) { return index < PLAIN + 4 ? 0 : (index - PLAIN) / 4; }
static inline int table_of(int index) { return index < PLAIN + 4 ? index : PLAIN + (index - PLAIN) % 4; }

/* The cost of a symbol in 1/256 bit. */
static inline int32_t symbol_cost(const Context *c, int index, int32_t value) {
    int low = low_bits(index);
    int32_t high = value >> low, over = 0;
    if (high >= REACH) over = high - REACH, high = REACH;
    if (high <= -REACH) over = -REACH - high, high = -REACH;
    int32_t bits = c->costs[table_of(index)][high + REACH] + 256 * low;
    if (high == REACH || high == -REACH) {
        int size = 0;
        while ((over + 1) >> (size + 1)) size++;
        bits += 256 * (2 * size + 1);
    }
    return bits;
}

static inline void encode_symbol(const Context *c, Encoder *e, int index, int32_t value) {
    int low = low_bits(index);
    int32_t high = value >> low, over = 0;
    if (high >= REACH) over = high - REACH, high = REACH;
    if (high <= -REACH) over = -REACH - high, high = -REACH;
    const uint32_t *start = c->starts[table_of(index)] + (high + REACH);
    encode_part(e, start[0], start[1] - start[0], 16);
    if (high == REACH || high == -REACH) encode_escape(e, (uint32_t)over);
    if (low) encode_bits(e, (uint32_t)value & ((1u << low) - 1), low);
}

/* Decode a symbol of at most 2^26. The search starts at zero. It multiplies where decode_place
 * divides: code / unit >= start is code >= unit * start. */
static inline int32_t decode_symbol(const Context *c, Decoder *d, int index) {
    int low = low_bits(index);
    const uint32_t *start = c->starts[table_of(index)];
    uint32_t unit = d->range >> 16, code = d->code, from = unit * start[REACH], to = unit * start[REACH + 1];
    int at = REACH;
    if (code < from)
        do to = from, from = unit * start[--at];
        while (code < from);
    else
        while (code >= to && at < SYMBOLS - 1) from = to, to = unit * start[++at + 1];
    d->code = code - from;
    d->range = to - from;
    refill(d);
    int32_t high = at - REACH;
    if (high == REACH) high += (int32_t)decode_escape(d);
    else if (high == -REACH) high -= (int32_t)decode_escape(d);
    if (!low) return high;
    int64_t value = (int64_t)high * ((int64_t)1 << low) + decode_bits(d, low);
    return (int32_t)(value > 1 << 26 ? 1 << 26 : value < -(1 << 26) ? -(1 << 26) : value);
}

/* ---- walk.c: the coefficients of one date of one tile */

/* How many planes a tile has, and for each its class, u, v and component; `planes` may be null. */
int tec_planes(int size, const int32_t *components, int32_t *planes);

/* Encode (mode 0), decode (1), or collect what the context network sees (2).
 *
 * size: of a block, 8 or 16. components (5): how many each class has; spreads (5, 31): their log2 of
 * standard deviation over step, in quarters. kind, fineness: 0 .. 127, which the network sees.
 * hints (size^2, rows, cols): magnitudes of what the date was predicted to be, at most MOST_SUM, for
 * each (u, v); null for a date that was not predicted.
 * wanted (planes, rows, cols): finite coefficients in steps, to encode. weight: what a squared step
 * of error is worth, in 1/256 bit.
 * values (planes, rows, cols): the result of encoding and of decoding; collecting reads it.
 * indexes, of the same shape, or null: number of the table of each value. Planes of zeros are
 * skipped: both must be zeros at first.
 * bytes, length: the stream, or room for it. features (most_rows, 28), symbols (most_rows): inputs
 * of the network and symbols, when collecting.
 * Returns the length of the stream (0), TEC_OK (1), the number of values (2), or a negative status. */
int64_t tec_walk(int mode, const Context *context, int size, int rows, int cols,
                 const int32_t *components, const int32_t *spreads, int kind, int fineness,
                 const int16_t *hints, const double *wanted, double weight, int32_t *values,
                 uint8_t *indexes, uint8_t *bytes, int64_t length, uint8_t *features,
                 int32_t *symbols, int64_t most_rows);

#endif
