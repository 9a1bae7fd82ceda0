/* The coefficients of one date of one tile: a context model, a range coder, and both ways through.
 *
 * Coefficients come in planes of `rows x cols` blocks, one plane for each spatial frequency (u, v) of
 * an N x N block and each spectral component of the frequency's class. Planes are coded one after
 * the other, blocks row by row. A small integer network turns what is decoded already into the
 * number of a table of frequencies; the same function does this for the encoder, for the decoder
 * and for training, so that they cannot differ.
 *
 * All arithmetic that a decoder does is in whole numbers. The encoder's choice between two values
 * of a coefficient uses doubles, one operation at a time (-ffp-contract=off).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "range_coder.h"
#include "tec.h"

#define MOST_BANDS 31
#define MOST_SIZE 16
#define CLASSES 5
#define INPUTS 28
#define SCAN_INPUTS 4   /* what the scan of a plane changes */
#define STILL_INPUTS 16 /* what was there before the plane */
#define FIXED_INPUTS 8  /* the same for a whole plane */
#define HIDDEN 32
#define TABLES 40
#define REACH 32                    /* symbols of a table: -REACH .. REACH; the ends escape */
#define SYMBOLS (2 * REACH + 1)
#define PLAIN 28                    /* tables from here on code symbols without their low bits */
#define INDEXES 96                  /* of which the last mean many low bits */
#define MOST_VALUE ((1 << 24) - 1)

enum { ENCODE = 0, DECODE = 1, COLLECT = 2 };

typedef struct {
    int16_t first[INPUTS][HIDDEN];   /* weights are of 8 bits */
    int32_t first_bias[HIDDEN];
    int16_t second[HIDDEN][HIDDEN];
    int32_t second_bias[HIDDEN];
    int16_t last[HIDDEN];
    int32_t last_bias;
    int32_t shifts[3];
    int16_t mean[4][MOST_BANDS];     /* of (0, 0): weights in 1/256 of w, n, nw, ne, by component */
    uint32_t starts[TABLES][SYMBOLS + 1]; /* cumulative frequencies; the last is 65536 */
    int32_t costs[TABLES][SYMBOLS];  /* of each symbol, in 1/256 bit */
} Context;

/* ---- symbols */

static int low_bits(int index) { return index < PLAIN + 4 ? 0 : (index - PLAIN) / 4; }
static int table_of(int index) { return index < PLAIN + 4 ? index : PLAIN + (index - PLAIN) % 4; }

/* The cost of a symbol in 1/256 bit. */
static int32_t cost(const Context *c, int index, int32_t value) {
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

static void encode_symbol(const Context *c, Encoder *e, int index, int32_t value) {
    int low = low_bits(index);
    int32_t high = value >> low, over = 0;
    if (high >= REACH) over = high - REACH, high = REACH;
    if (high <= -REACH) over = -REACH - high, high = -REACH;
    const uint32_t *start = c->starts[table_of(index)] + high + REACH;
    encode_part(e, start[0], start[1] - start[0], 16);
    if (high == REACH || high == -REACH) encode_escape(e, (uint32_t)over);
    if (low) encode_bits(e, (uint32_t)value & ((1u << low) - 1), low);
}

static int32_t decode_symbol(const Context *c, Decoder *d, int index) {
    int low = low_bits(index);
    const uint32_t *start = c->starts[table_of(index)];
    uint32_t place = decode_place(d, 16);
    int at = REACH;
    while (place < start[at]) at--;
    while (place >= start[at + 1]) at++;
    decode_part(d, start[at], start[at + 1] - start[at], 16);
    int32_t high = at - REACH;
    if (high == REACH) high += (int32_t)decode_escape(d);
    else if (high == -REACH) high -= (int32_t)decode_escape(d);
    return low ? (int32_t)((uint32_t)high << low | decode_bits(d, low)) : high;
}

/* ---- context */

/* Sums of magnitudes are for the network round(10 log2(1 + n)), up to n = 4095: entry i is the
 * smallest n with the value i. */
static const uint16_t log_steps[] = {
    0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6,
    7, 7, 8, 8, 9, 10, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 23, 25, 26, 28, 30, 33,
    35, 38, 40, 43, 46, 50, 53, 57, 61, 66, 71, 76, 81, 87, 93, 100, 107, 115, 123, 132,
    142, 152, 163, 174, 187, 200, 215, 230, 247, 265, 284, 304, 326, 349, 374, 401, 430,
    461, 494, 530, 568, 608, 652, 699, 749, 803, 861, 922, 989, 1060, 1136, 1217, 1305,
    1398, 1499, 1606, 1722, 1845, 1978, 2120, 2272, 2435, 2610, 2797, 2998, 3213, 3444,
    3691, 3956,
};
static uint8_t log_table[4096];

static void make_log_table(void) {
    int value = 0;
    for (int n = 0; n < 4096; n++) {
        while (value + 1 < (int)(sizeof log_steps / sizeof *log_steps) && n >= log_steps[value + 1]) value++;
        log_table[n] = (uint8_t)value;
    }
}

static uint8_t log_of(uint32_t n) { return log_table[n < 4095 ? n : 4095]; }

typedef struct {
    int rows, cols, pitch, blocks; /* planes have a margin of one block all round */
} Shape;

static void sum_around(const Shape *s, const uint32_t *plane, uint32_t *out) {
    for (int r = 1; r <= s->rows; r++)
        for (int c = 1; c <= s->cols; c++) {
            const uint32_t *at = plane + r * s->pitch + c;
            const uint32_t *up = at - s->pitch, *down = at + s->pitch;
            out[r * s->pitch + c] =
                up[-1] + up[0] + up[1] + at[-1] + at[1] + down[-1] + down[0] + down[1];
        }
}

/* The network's last two layers, on the sums of the first. */
static inline int index_of(const Context *c, const int32_t *sums) {
    int16_t one[HIDDEN];
    int32_t out = c->last_bias;
    for (int i = 0; i < HIDDEN; i++) {
        int32_t sum = sums[i] >> c->shifts[0];
        one[i] = (int16_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
    for (int i = 0; i < HIDDEN; i++) {
        int32_t sum = 0;
        for (int j = 0; j < HIDDEN; j++) sum += c->second[i][j] * one[j];
        sum = (sum + c->second_bias[i]) >> c->shifts[1];
        out += c->last[i] * (sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
    out >>= c->shifts[2];
    return out < 0 ? 0 : out >= INDEXES ? INDEXES - 1 : (int)out;
}

/* sums += first[.][from ...] x, `count` inputs; `first` lies with the units of an input together. */
static inline void add_inputs(const Context *c, int32_t *sums, int from, const uint8_t *x, int count) {
    for (int j = 0; j < count; j++) {
        int32_t value = x[j];
        if (!value) continue;
        const int16_t *weight = c->first[from + j];
        for (int i = 0; i < HIDDEN; i++) sums[i] += weight[i] * value;
    }
}

static int class_of(int u, int v) {
    int most = u > v ? u : v, n = 0;
    for (; most; most >>= 1) n++;
    return n; /* 0; 1; 2-3; 4-7; 8-15 */
}

/* Frequencies of a class in the order in which they are coded. */
static int order_of(int size, int class, int *us, int *vs) {
    int count = 0;
    for (int sum = 0; sum <= 2 * (size - 1); sum++)
        for (int apart = 0; apart <= sum; apart++)
            for (int side = 0; side < 2; side++) {
                if ((sum + apart) % 2 || (side && !apart)) continue;
                int u = (sum + apart) / 2, v = (sum - apart) / 2;
                if (side) { int t = u; u = v; v = t; }
                if (u < size && v < size && class_of(u, v) == class)
                    us[count] = u, vs[count++] = v;
            }
    return count;
}

/* How many planes a tile has, and for each its class, u, v and component; `planes` may be null. */
int tec_planes(int size, const int32_t *components, int32_t *planes) {
    int us[MOST_SIZE * MOST_SIZE], vs[MOST_SIZE * MOST_SIZE], count = 0;
    for (int class = 0; class < CLASSES; class++) {
        int frequencies = order_of(size, class, us, vs);
        for (int f = 0; f < frequencies; f++)
            for (int k = 0; k < components[class]; k++, count++)
                if (planes) {
                    int32_t *p = planes + 4 * count;
                    p[0] = class, p[1] = us[f], p[2] = vs[f], p[3] = k;
                }
    }
    return count;
}

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTEST
#endif

/* Walk over all planes of a tile.
 *
 * components: (5,) how many components each class has; spreads: (5, 31) their log2 of standard
 * deviation over step, in quarters. kind, fineness: two whole numbers 0..127 that the network sees.
 * hints: (planes, rows, cols) twice the magnitudes that are expected, in steps, or null.
 * wanted: (planes, rows, cols) coefficients in steps (ENCODE). values: (planes, rows, cols)
 * int32, written by ENCODE and DECODE, read by COLLECT. weight: squared steps per bit of error.
 * bytes, size: the stream; returns its length (ENCODE), or the number of rows (COLLECT: features
 * of 28 bytes and int32 symbols, for training), or 0; negative numbers are errors.
 */
FASTEST int64_t tec_walk(int mode, const Context *context, int size, int rows, int cols,
                 const int32_t *components, const int32_t *spreads, int kind, int fineness,
                 const uint16_t *hints, const double *wanted, double weight, int32_t *values, uint8_t *indexes,
                 uint8_t *bytes, int64_t length, uint8_t *features, int32_t *symbols,
                 int64_t most_rows) {
    if ((size != 8 && size != 16) || rows < 1 || cols < 1 || rows > 4096 || cols > 4096)
        return TEC_BAD_ARGUMENT;
    int most = 0;
    for (int c = 0; c < CLASSES; c++) {
        if (components[c] < 0 || components[c] > MOST_BANDS) return TEC_BAD_ARGUMENT;
        if (components[c] > most) most = components[c];
    }
    make_log_table();
    Shape s = {rows, cols, cols + 2, rows * cols};
    size_t plane = (size_t)(rows + 2) * (cols + 2);
    size_t many = (size_t)size * size * (most ? most : 1);
    /* magnitudes and their sums around, of every plane by (u, v, component) */
    uint32_t *magnitudes = calloc(many * plane, sizeof *magnitudes);
    uint32_t *around = calloc(many * plane, sizeof *around);
    uint32_t *spare = calloc(10 * plane, sizeof *spare);
    if (!magnitudes || !around || !spare) {
        free(magnitudes), free(around), free(spare);
        return TEC_NO_MEMORY;
    }
    uint32_t *zero = spare, *sum = spare + plane, *sum_near = spare + 2 * plane;
    uint32_t *before = spare + 3 * plane, *before_near = spare + 4 * plane;
    uint32_t *same = spare + 5 * plane, *same_near = spare + 6 * plane, *total = spare + 7 * plane;
    uint32_t *hint = spare + 8 * plane, *hint_near = spare + 9 * plane;
    Encoder e = begin_encoding(bytes, length);
    Decoder d = begin_decoding(bytes, mode == DECODE ? length : 0);
    int64_t row_count = 0, status = TEC_OK;
    int us[MOST_SIZE * MOST_SIZE], vs[MOST_SIZE * MOST_SIZE];
    size_t at_plane = 0;
    for (int class = 0; class < CLASSES; class++) {
        int count = components[class];
        int frequencies = order_of(size, class, us, vs);
        sum_around(&s, before, before_near);
        memset(same, 0, plane * sizeof *same);
        for (int f = 0; f < frequencies && count; f++) {
            int u = us[f], v = vs[f];
            sum_around(&s, same, same_near);
            memset(total, 0, plane * sizeof *total);
#define PLANE(of, uu, vv, kk) \
    ((uu) < 0 || (vv) < 0 || (kk) < 0 ? zero : (of) + (((size_t)(uu) * size + (vv)) * most + (kk)) * plane)
            for (int k = 0; k < count; k++, at_plane++) {
                uint32_t *mine = PLANE(magnitudes, u, v, k);
                const uint32_t *low_u = PLANE(magnitudes, u - 1, v, k);
                const uint32_t *low_v = PLANE(magnitudes, u, v - 1, k);
                const uint32_t *low_both = u && v ? PLANE(magnitudes, u - 1, v - 1, k) : zero;
                const uint32_t *far_u = PLANE(magnitudes, u - 2, v, k);
                const uint32_t *far_v = PLANE(magnitudes, u, v - 2, k);
                const uint32_t *near_u = PLANE(around, u - 1, v, k);
                const uint32_t *near_v = PLANE(around, u, v - 1, k);
                const uint32_t *one = PLANE(magnitudes, u, v, k - 1);
                const uint32_t *two = PLANE(magnitudes, u, v, k - 2);
                const uint32_t *one_near = PLANE(around, u, v, k - 1);
                sum_around(&s, total, sum_near);
                memcpy(sum, total, plane * sizeof *sum);
                uint8_t fixed[FIXED_INPUTS] = {0};
                int spread = spreads[class * MOST_BANDS + k] + 32;
                fixed[0] = (uint8_t)(spread < 0 ? 0 : spread > 127 ? 127 : spread);
                fixed[1] = (uint8_t)(u * 128 / size);
                fixed[2] = (uint8_t)(v * 128 / size);
                fixed[3] = (uint8_t)(16 * (k < 7 ? k : 7));
                fixed[4] = (uint8_t)kind;
                fixed[5] = (uint8_t)fineness;
                fixed[6] = hints ? 64 : 0;
                int32_t base[HIDDEN];
                memcpy(base, context->first_bias, sizeof base);
                add_inputs(context, base, SCAN_INPUTS + STILL_INPUTS, fixed, FIXED_INPUTS);
                int silent = index_of(context, base);
                if (hints) {
                    const uint16_t *from = hints + at_plane * s.blocks;
                    for (int r = 0; r < rows; r++)
                        for (int c = 0; c < cols; c++)
                            hint[(r + 1) * s.pitch + c + 1] = from[r * cols + c];
                    sum_around(&s, hint, hint_near);
                }
                int32_t *out = values + at_plane * s.blocks;
                const double *in = wanted ? wanted + at_plane * s.blocks : 0;
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < cols; c++) {
                        size_t i = (size_t)(r + 1) * s.pitch + c + 1, up = i - s.pitch;
                        size_t up2 = r ? up - s.pitch : up; /* the margin, which is zero, where r = 0 */
                        size_t left2 = c ? i - 2 : i - 1;
                        uint32_t scan[SCAN_INPUTS] = {
                            2 * (mine[up] + mine[i - 1]) + mine[up - 1] + mine[up + 1],
                            mine[up], mine[i - 1], mine[up2] + mine[left2]};
                        uint32_t still[STILL_INPUTS] = {
                            low_u[i], low_v[i], low_both[i], far_u[i] + far_v[i],
                            near_u[i] + near_v[i], one[i], two[i], sum[i], one_near[i], sum_near[i],
                            before[i], before_near[i], same[i], same_near[i], hint[i], hint_near[i]};
                        uint32_t any = scan[0] | scan[3];
                        for (int j = 0; j < STILL_INPUTS; j++) any |= still[j];
                        uint8_t x[INPUTS];
                        int index = silent;
                        if (any || mode == COLLECT) {
                            for (int j = 0; j < SCAN_INPUTS; j++) x[j] = log_of(scan[j]);
                            for (int j = 0; j < STILL_INPUTS; j++) x[SCAN_INPUTS + j] = log_of(still[j]);
                            memcpy(x + SCAN_INPUTS + STILL_INPUTS, fixed, FIXED_INPUTS);
                        }
                        if (any) {
                            int32_t sums[HIDDEN];
                            memcpy(sums, base, sizeof sums);
                            add_inputs(context, sums, 0, x, SCAN_INPUTS + STILL_INPUTS);
                            index = index_of(context, sums);
                        }
                        int32_t mean = 0;
                        if (!u && !v) {
                            const int32_t *at = out + r * cols + c;
                            int32_t w = c ? at[-1] : 0, n = r ? at[-cols] : 0;
                            int32_t nw = r && c ? at[-cols - 1] : 0, ne = r && c + 1 < cols ? at[-cols + 1] : n;
                            if (!c) w = n;
                            if (!r) n = w, nw = w, ne = w;
                            if (!c) nw = n;
                            int64_t m = (int64_t)context->mean[0][k] * w + (int64_t)context->mean[1][k] * n +
                                        (int64_t)context->mean[2][k] * nw + (int64_t)context->mean[3][k] * ne;
                            mean = (int32_t)((m + 128) >> 8);
                            if (mean > MOST_VALUE) mean = MOST_VALUE;
                            if (mean < -MOST_VALUE) mean = -MOST_VALUE;
                        }
                        int32_t value;
                        if (mode == DECODE) {
                            int64_t sum_of = (int64_t)mean + decode_symbol(context, &d, index);
                            if (sum_of > MOST_VALUE || sum_of < -MOST_VALUE) { status = TEC_DAMAGED; goto done; }
                            value = (int32_t)sum_of;
                        } else if (mode == COLLECT) {
                            value = out[r * cols + c];
                            if (row_count < most_rows) {
                                memcpy(features + row_count * INPUTS, x, INPUTS);
                                symbols[row_count] = value - mean;
                            }
                            row_count++;
                        } else {
                            double y = in[r * cols + c], size_of = y < 0 ? -y : y;
                            int32_t near = (int32_t)(size_of + 0.5);
                            if (near > MOST_VALUE) near = MOST_VALUE;
                            value = y < 0 ? -near : near;
                            if (near && weight > 0) {
                                int32_t less = y < 0 ? 1 - near : near - 1;
                                double a = size_of - near, b = size_of - (near - 1);
                                double ca = cost(context, index, value - mean) + weight * a * a;
                                double cb = cost(context, index, less - mean) + weight * b * b;
                                if (cb < ca) value = less;
                            }
                            encode_symbol(context, &e, index, value - mean);
                        }
                        out[r * cols + c] = value;
                        if (indexes) indexes[at_plane * s.blocks + r * cols + c] = (uint8_t)index;
                        mine[i] = (uint32_t)(value < 0 ? -value : value);
                    }
                sum_around(&s, mine, PLANE(around, u, v, k));
                for (size_t i = 0; i < plane; i++) total[i] += mine[i];
            }
            for (size_t i = 0; i < plane; i++) same[i] += total[i];
        }
        for (size_t i = 0; i < plane; i++) before[i] += same[i];
    }
    if (mode == ENCODE) {
        int64_t written = end_encoding(&e, bytes);
        status = written < 0 ? TEC_TOO_SMALL : written;
    } else if (mode == COLLECT) status = row_count;
done:
    free(magnitudes), free(around), free(spare);
    return status;
}
