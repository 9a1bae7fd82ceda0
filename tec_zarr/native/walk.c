/* The coefficients of one date of one tile: contexts, and both ways through the range coder.
 *
 * Coefficients come in planes of `rows x cols` blocks, one plane for each spatial frequency (u, v) of
 * an N x N block and each spectral component of the frequency's class. Planes are coded one after
 * the other: a flag for a plane of zeros, otherwise its blocks row by row. What is decoded already
 * becomes the inputs of the context network (context.h).
 *
 * All arithmetic that a decoder does is in whole numbers. The encoder's choice between two values
 * of a coefficient uses doubles, one operation at a time (-ffp-contract=off).
 */
#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "sums.h"
#include "tec.h"

#define FLAGGED 64    /* tiles of so many blocks have flags for planes of zeros */
#define SPARE 32      /* readable values beyond a plane */

enum { ENCODE = 0, DECODE = 1, COLLECT = 2 };

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

/* ---- a walk */

typedef struct {
    Net net;
    const Context *context;
    Shape shape;
    int mode;
    double weight;
    Encoder encoder;
    Decoder decoder;
    const uint8_t *still[STILL_INPUTS]; /* logarithms for the plane that is coded */
    uint8_t fixed[FIXED_INPUTS];
    uint8_t (*x)[STILL_INPUTS];         /* inputs of a row */
    uint8_t (*scan)[SCAN_INPUTS];
    int16_t *above;                     /* input 0 of a row as far as the row above makes it */
    uint8_t *above_log;
    uint8_t *indexes;                   /* of a plane, where the caller wants none */
    uint8_t *features;
    int32_t *symbols;
    int64_t collected, most_collected;
} Walk;

/* Gather the still inputs of the blocks of a row. */
static void gather(const uint8_t *const *from, size_t at, int cols, uint8_t (*x)[STILL_INPUTS]) {
    for (int c = 0; c < cols; c += 16, at += 16, x += 16) {
#if defined(__SSE2__)
        __m128i a[16], b[16]; /* a transpose of 16 x 16: four rounds of perfect shuffles */
        for (int j = 0; j < 16; j++) a[j] = _mm_loadu_si128((const __m128i *)(const void *)(from[j] + at));
        for (int round = 0; round < 2; round++) {
            for (int j = 0; j < 8; j++) {
                b[2 * j] = _mm_unpacklo_epi8(a[j], a[j + 8]);
                b[2 * j + 1] = _mm_unpackhi_epi8(a[j], a[j + 8]);
            }
            for (int j = 0; j < 8; j++) {
                a[2 * j] = _mm_unpacklo_epi8(b[j], b[j + 8]);
                a[2 * j + 1] = _mm_unpackhi_epi8(b[j], b[j + 8]);
            }
        }
        for (int j = 0; j < 16; j++) _mm_storeu_si128((__m128i *)(void *)x[j], a[j]);
#else
        int some = cols - c < 16 ? cols - c : 16;
        for (int j = 0; j < STILL_INPUTS; j++) {
            const uint8_t *row = from[j] + at;
            for (int i = 0; i < some; i++) x[i][j] = row[i];
        }
#endif
    }
}

/* Set the inputs of one block that the scan changes; up2 and left2 are two blocks away. All four are
 * stored at once, because a processor waits where it loads at once what it stored in parts. */
static inline void set_scan(const Net *net, uint8_t *scan, const int16_t *at, int pitch, int left, int left2) {
    const int16_t *up = at - pitch;
    uint32_t first = net->log[capped((int16_t)(2 * (up[0] + left) + up[-1] + up[1]))];
    uint32_t second = net->log[up[0]], third = net->log[left];
    uint32_t fourth = net->log[capped((int16_t)(up[-pitch] + left2))];
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    uint32_t four = first << 24 | second << 16 | third << 8 | fourth;
#else
    uint32_t four = first | second << 8 | third << 16 | fourth << 24;
#endif
    memcpy(scan, &four, sizeof four);
}

/* Set them for a row as if the row were zero. */
static void set_scans(Walk *w, const Sums *mine, size_t at) {
    int cols = w->shape.cols, pitch = w->shape.pitch;
    const int16_t *up = mine->sum + at - pitch;
    const uint8_t *up_log = mine->log + at - pitch, *up2_log = up_log - pitch;
    uint8_t *scan = w->scan[0];
    for (int c = 0; c < cols; c++) w->above[c] = capped((int16_t)(2 * up[c] + up[c - 1] + up[c + 1]));
    w->net.take_logs(&w->net, w->above, (size_t)cols, w->above_log);
    for (int c = 0; c < cols; c++, scan += SCAN_INPUTS)
        scan[0] = w->above_log[c], scan[1] = up_log[c], scan[2] = 0, scan[3] = up2_log[c];
}

/* What neighbours make expect of a value of (0, 0). `at` is its place in the plane. */
static int32_t mean_of(const Context *context, int k, const int32_t *at, int r, int c, int cols) {
    int32_t w = c ? at[-1] : 0, n = r ? at[-cols] : 0;
    int32_t nw = r && c ? at[-cols - 1] : 0, ne = r && c + 1 < cols ? at[-cols + 1] : n;
    if (!c) w = n;
    if (!r) n = w, nw = w, ne = w;
    if (!c) nw = n;
    int64_t sum = (int64_t)context->mean[0][k] * w + (int64_t)context->mean[1][k] * n +
                  (int64_t)context->mean[2][k] * nw + (int64_t)context->mean[3][k] * ne;
    int32_t mean = (int32_t)((sum + 128) >> 8);
    if (mean > MOST_VALUE) mean = MOST_VALUE;
    if (mean < -MOST_VALUE) mean = -MOST_VALUE;
    return mean;
}

/* The nearest whole number to y, or the next one towards what is expected where this saves more bits
 * than its error is worth. */
static inline int32_t chosen(const Context *context, double weight, int index, double y, int32_t mean) {
    double size = y < 0 ? -y : y;
    int32_t near = size < MOST_VALUE ? (int32_t)(size + 0.5) : MOST_VALUE;
    int32_t value = y < 0 ? -near : near;
    if (value == mean || !(weight > 0)) return value;
    int32_t next = value > mean ? value - 1 : value + 1;
    double a = y - value, b = y - next;
    double cost = symbol_cost(context, index, value - mean) + weight * a * a;
    double cost_of_next = symbol_cost(context, index, next - mean) + weight * b * b;
    return cost_of_next < cost ? next : value;
}

static void collect(Walk *w, int c, int32_t symbol) {
    if (w->collected < w->most_collected) {
        uint8_t *to = w->features + w->collected * INPUTS;
        memcpy(to, w->scan[c], SCAN_INPUTS);
        for (int p = 0; p < STILL_INPUTS; p++) to[SCAN_INPUTS + still_at[p]] = w->x[c][p];
        memcpy(to + SCAN_INPUTS + STILL_INPUTS, w->fixed, FIXED_INPUTS);
        w->symbols[w->collected] = symbol;
    }
    w->collected++;
}

/* A row of a plane. Most symbols of a sparse row are zero: then the network sees the row before it is
 * coded, and again only those blocks whose left neighbours turn out not to be zero. */
typedef struct {
    int number, flat, k, sparse; /* flat: of frequency (0, 0) */
    int16_t *sums;
    uint8_t *logs, *indexes;
    int32_t *values;
    const double *wanted;
} Row;

/* Walk over a row in a mode; return how many symbols are not zero, or TEC_DAMAGED. */
static inline int walk_row(Walk *w, const Row *row, const int mode) {
    const Net *net = &w->net;
    const Context *context = w->context;
    const int cols = w->shape.cols, pitch = w->shape.pitch, sparse = row->sparse, flat = row->flat;
    const uint8_t(*x)[STILL_INPUTS] = (const uint8_t(*)[STILL_INPUTS])w->x;
    uint8_t(*scan)[SCAN_INPUTS] = w->scan;
    int16_t *sums = row->sums;
    uint8_t *indexes = row->indexes;
    int32_t *values = row->values;
    Decoder decoder = w->decoder;
    int count = 0, left = 0, left2 = 0;
    for (int c = 0; c < cols; c++) {
        if (!sparse || left | left2) {
            int two = sparse && left && c + 1 < cols;
            set_scan(net, scan[c], sums + c, pitch, left, left2);
            if (two) set_scan(net, scan[c + 1], sums + c + 1, pitch, 0, left);
            net->evaluate(net, x + c, (const uint8_t(*)[SCAN_INPUTS])scan + c, 1 + two, indexes + c);
        }
        int32_t mean = flat ? mean_of(context, row->k, values + c, row->number, c, cols) : 0, value;
        if (mode == DECODE) {
            value = mean + decode_symbol(context, &decoder, indexes[c]);
            if (value > MOST_VALUE || value < -MOST_VALUE) return TEC_DAMAGED;
        } else if (mode == COLLECT) {
            value = values[c];
            collect(w, c, value - mean);
        } else value = chosen(context, w->weight, indexes[c], row->wanted[c], mean);
        left2 = left, left = 0;
        int32_t symbol = value - mean, size = symbol < 0 ? -symbol : symbol;
        values[c] = value;
        if (!size) continue;
        left = size < MOST_SUM ? size : MOST_SUM;
        sums[c] = (int16_t)left, row->logs[c] = net->log[left];
        count++;
    }
    if (mode == DECODE) w->decoder = decoder;
    return count;
}

/* Walk over a plane. Values are decoded, chosen or read; those of an encoder are written later. */
static int walk_plane(Walk *w, int flat, int k, int expected, const double *wanted, int32_t *values,
                      uint8_t *indexes, Sums *mine) {
    const Shape *s = &w->shape;
    int last = 0, above = 0; /* values that are not zero: of the row before, of the two before */
    Row row = {0, flat, k, 4 * (int64_t)expected <= (int64_t)s->rows * s->cols, NULL, NULL, indexes,
               values, wanted};
    for (int r = 0; r < s->rows; r++) {
        size_t at = s->start + (size_t)r * s->pitch;
        row.number = r, row.sums = mine->sum + at, row.logs = mine->log + at;
        gather(w->still, at, s->cols, w->x);
        if (row.sparse) {
            if (above) set_scans(w, mine, at);
            else memset(w->scan, 0, sizeof *w->scan * (size_t)s->cols);
            w->net.evaluate(&w->net, (const uint8_t(*)[STILL_INPUTS])w->x,
                            (const uint8_t(*)[SCAN_INPUTS])w->scan, s->cols, row.indexes);
        }
        int count = w->mode == DECODE   ? walk_row(w, &row, DECODE)
                    : w->mode == ENCODE ? walk_row(w, &row, ENCODE)
                                        : walk_row(w, &row, COLLECT);
        if (count < 0) return count;
        mine->count += count;
        above = last + count, last = count;
        row.sparse = 4 * count <= s->cols;
        row.indexes += s->cols, row.values += s->cols;
        if (wanted) row.wanted += s->cols;
    }
    return TEC_OK;
}

static void encode_plane(Walk *w, int flat, int k, const int32_t *values, const uint8_t *indexes) {
    const Shape *s = &w->shape;
    for (int r = 0; r < s->rows; r++)
        for (int c = 0; c < s->cols; c++, values++, indexes++) {
            int32_t mean = flat ? mean_of(w->context, k, values, r, c, s->cols) : 0;
            encode_symbol(w->context, &w->encoder, *indexes, *values - mean);
        }
}

/* ---- planes of zeros */

/* How often, in 1/65536, a plane is zero, by the binary digits of how many of 256 blocks are not
 * zero in the next lower frequencies. Counted on training tiles. */
static const uint16_t chance_of_zeros[10] = {
    64250, 51800, 37700, 22980, 10450, 3470, 870, 164, 16, 4,
};

static uint32_t chance_of(const Shape *s, int lower) {
    int64_t part = (int64_t)lower * 256 / ((int64_t)s->rows * s->cols);
    int digits = 0;
    for (; part && digits < 9; part >>= 1) digits++;
    return chance_of_zeros[digits];
}

/* Whether all values of a plane are below 1/2: exponents of doubles below that of 1/2. */
static int is_zero(const double *wanted, size_t count) {
    for (size_t i = 0; i < count; i += 64) {
        size_t end = count - i < 64 ? count : i + 64;
        uint64_t all = 0, bits;
        for (size_t j = i; j < end; j++) {
            memcpy(&bits, wanted + j, sizeof bits);
            all |= (bits & (UINT64_MAX >> 1)) + ((uint64_t)2 << 52);
        }
        if (all >> 62) return 0;
    }
    return 1;
}

/* ---- the whole tile */

typedef struct {
    Sums sum;            /* of planes */
    int dirty;           /* its logarithms are not those of its sums */
} Running;

static void refresh(Walk *w, Running *of) {
    if (of->dirty) take_both_logs(&w->shape, &w->net, &of->sum);
    of->dirty = 0;
}

static void grow(const Shape *s, Running *to, const Sums *more) {
    if (!more->count) return;
    add_to(s, &to->sum, more);
    to->dirty = 1;
}

/* Take the hints of a frequency. */
static void take_hints(const Shape *s, const Net *net, const int16_t *hints, Sums *to) {
    to->count = 0;
    for (int r = 0; r < s->rows; r++, hints += s->cols) {
        int16_t *row = to->sum + s->start + (size_t)r * s->pitch;
        memcpy(row, hints, sizeof *row * (size_t)s->cols);
        for (int c = 0; c < s->cols; c++) to->count += row[c] != 0;
    }
    if (!to->count) return;
    add_around(s, to->sum, to->near);
    take_both_logs(s, net, to);
}

/* How many values of a plane are not zero, as the network sees it. */
static uint8_t density(const Walk *w, int count) {
    return w->net.log[(int64_t)count * MOST_SUM / ((int64_t)w->shape.rows * w->shape.cols * 2)];
}

static void empty(const Shape *s, Running *of) {
    if (!of->sum.count) return;
    memset(of->sum.sum, 0, BYTES_OF_VALUE * s->plane);
    of->sum.count = of->dirty = 0;
}

int64_t tec_walk(int mode, const Context *context, int size, int rows, int cols,
                 const int32_t *components, const int32_t *spreads, int kind, int fineness,
                 const int16_t *hints, const double *wanted, double weight, int32_t *values,
                 uint8_t *indexes, uint8_t *bytes, int64_t length, uint8_t *features,
                 int32_t *symbols, int64_t most_rows) {
    if ((size != 8 && size != 16) || rows < 1 || cols < 1 || rows > 4096 || cols > 4096)
        return TEC_BAD_ARGUMENT;
    int most = 1;
    for (int c = 0; c < CLASSES; c++) {
        if (components[c] < 0 || components[c] > MOST_BANDS) return TEC_BAD_ARGUMENT;
        if (components[c] > most) most = components[c];
    }
    int pitch = cols + MARGIN;
    size_t plane = ((size_t)(rows + MARGIN + 1) * pitch + SPARE + 15) / 16 * 16;
    Shape shape = {rows, cols, pitch, plane, (size_t)MARGIN * pitch + MARGIN};
    size_t blocks = (size_t)rows * cols, table = (size_t)size * size * most;
    /* zeros, hints, three running sums, logarithms of two planes; and the planes that are not zero */
    size_t count = (size_t)tec_planes(size, components, NULL) + 7;
    size_t row = (size_t)cols + 16, row_bytes = row * (STILL_INPUTS + SCAN_INPUTS + 3);
    if (count > (SIZE_MAX - row_bytes - blocks) / (BYTES_OF_VALUE * plane)) return TEC_NO_MEMORY;
    uint8_t *room = malloc(count * BYTES_OF_VALUE * plane + row_bytes + blocks);
    Sums *at_place = malloc(table * sizeof *at_place);
    Walk *w = malloc(sizeof *w);
    int64_t status = TEC_NO_MEMORY;
    if (!room || !at_place || !w) goto done;
    memset(room, 0, 7 * BYTES_OF_VALUE * plane);
    uint8_t *free_room = room;
#define NEXT_SUMS() (free_room += BYTES_OF_VALUE * plane, sums_at(free_room - BYTES_OF_VALUE * plane, &shape))
    const Sums zero = NEXT_SUMS();
    Sums two = NEXT_SUMS(), hint = NEXT_SUMS();
    Running total = {NEXT_SUMS(), 0}, same = {NEXT_SUMS(), 0}, before = {NEXT_SUMS(), 0};
    for (size_t i = 0; i < table; i++) at_place[i] = zero;
    tec_net(&w->net, context);
    w->context = context, w->shape = shape, w->mode = mode, w->weight = weight;
    w->features = features, w->symbols = symbols, w->collected = 0, w->most_collected = most_rows;
    uint8_t *rest = room + count * BYTES_OF_VALUE * plane;
    w->above = (int16_t *)(void *)rest, w->above_log = rest + 2 * row;
    w->x = (uint8_t (*)[STILL_INPUTS])(rest + 3 * row);
    w->scan = (uint8_t (*)[SCAN_INPUTS])(rest + 3 * row + STILL_INPUTS * row);
    w->indexes = rest + row_bytes;
    w->encoder = begin_encoding(bytes, length);
    w->decoder = begin_decoding(bytes, mode == DECODE ? length : 0);
    int flagged = blocks >= FLAGGED, us[MOST_SIZE * MOST_SIZE], vs[MOST_SIZE * MOST_SIZE];
    size_t number = 0;
    for (int class = 0; class < CLASSES; class++) {
        int frequencies = order_of(size, class, us, vs);
        refresh(w, &before);
        empty(&shape, &same);
        for (int f = 0; f < frequencies && components[class]; f++) {
            int u = us[f], v = vs[f];
            int hinted = !hints;
            hint.count = 0;
            refresh(w, &same);
            empty(&shape, &total);
            for (int k = 0; k < components[class]; k++, number++) {
#define PLACE(uu, vv, kk) (at_place + (((size_t)(uu) * size + (vv)) * most + (kk)))
#define OF(uu, vv, kk) ((uu) < 0 || (vv) < 0 || (kk) < 0 ? &zero : PLACE(uu, vv, kk))
                const Sums *low_u = OF(u - 1, v, k), *low_v = OF(u, v - 1, k), *one = OF(u, v, k - 1);
                int lower = low_u->count + low_v->count;
                int32_t *out = values + number * blocks;
                const double *in = wanted ? wanted + number * blocks : NULL;
                uint8_t *index = indexes ? indexes + number * blocks : w->indexes;
                int flag = flagged && (u || v) && mode != COLLECT;
                uint32_t chance = flag ? chance_of(&shape, lower) : 0;
                if (flag && mode == DECODE) {
                    if (decode_bit(&w->decoder, chance)) continue;
                } else if (flag && is_zero(in, blocks)) {
                    encode_bit(&w->encoder, chance, 1);
                    continue;
                }
                if (!hinted) take_hints(&shape, &w->net, hints + (u * size + v) * blocks, &hint), hinted = 1;
                int spread = spreads[class * MOST_BANDS + k] + 32;
                w->fixed[0] = (uint8_t)(spread < 0 ? 0 : spread > 127 ? 127 : spread);
                w->fixed[1] = (uint8_t)(u * 128 / size);
                w->fixed[2] = (uint8_t)(v * 128 / size);
                w->fixed[3] = (uint8_t)(16 * (k < 7 ? k : 7));
                w->fixed[4] = (uint8_t)kind;
                w->fixed[5] = (uint8_t)fineness;
                w->fixed[6] = density(w, lower), w->fixed[7] = density(w, 2 * one->count);
                tec_net_plane(&w->net, w->fixed);
                refresh(w, &total);
                const uint8_t *still[STILL_INPUTS] = {
                    low_u->log, low_v->log, u && v ? PLACE(u - 1, v - 1, k)->log : zero.log,
                    log_of_two(&shape, &w->net, OF(u - 2, v, k), OF(u, v - 2, k), 0, &two),
                    log_of_two(&shape, &w->net, low_u, low_v, 1, &two),
                    one->log, OF(u, v, k - 2)->log, total.sum.log, one->near_log, total.sum.near_log,
                    before.sum.log, before.sum.near_log, same.sum.log, same.sum.near_log,
                    hint.count ? hint.log : zero.log, hint.count ? hint.near_log : zero.log,
                };
                for (int p = 0; p < STILL_INPUTS; p++) w->still[p] = still[still_at[p]];
                Sums *mine = PLACE(u, v, k);
                *mine = NEXT_SUMS();
                memset(mine->sum, 0, BYTES_WITH_MARGINS * plane);
                int flat = !u && !v;
                int expected = flat ? (int)blocks : lower / 2;
                status = walk_plane(w, flat, k, expected, in, out, index, mine);
                if (status) goto done;
                if (mode == ENCODE) {
                    if (flag) encode_bit(&w->encoder, chance, !mine->count);
                    if (!flag || mine->count) encode_plane(w, flat, k, out, index);
                    else memset(index, 0, blocks); /* as decoders leave it */
                }
                if (!mine->count) {
                    free_room -= BYTES_OF_VALUE * plane;
                    *mine = zero;
                    continue;
                }
                add_around(&shape, mine->sum, mine->near);
                take_logs(&shape, &w->net, mine->near, mine->near_log);
                grow(&shape, &total, mine);
            }
            grow(&shape, &same, &total.sum);
        }
        grow(&shape, &before, &same.sum);
    }
    status = mode == COLLECT ? w->collected : TEC_OK;
    if (mode == ENCODE) {
        status = end_encoding(&w->encoder, bytes);
        if (status < 0) status = TEC_TOO_SMALL;
    }
done:
    free(room), free(at_place), free(w);
    return status;
}
