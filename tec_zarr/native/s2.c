/* The latents of a tec-s2 section (s2_tile.h) and their pixels (s2_image.h), compiled: what decoding
 * spends most of its time on.
 *
 * The same numbers, bit for bit, as tec_zarr/networks/walk.py and pixel_net.py, which run where this
 * was not built; docs/format-tec-s2-latents.md says what is computed. tec_zarr/native/__init__.py
 * builds the arguments and checks their sizes. What a stream holds can make the result FAILED, and lead to no
 * place outside of an array.
 *
 * To be compiled with -ffp-contract=off: every float32 operation is rounded by itself.
 */

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define GROUPS 5
#define CHANNELS 320
#define EARLY 160 /* channels of all groups but the last, and of that one */
#define WIDEST 128 /* hidden units */
#define FINE 4
#define COARSE 4
#define MOST_TAPS 12
#define MARGIN 2
#define SCALES 52
#define UNITS 16
#define COMPAND_REACH (1 << 15)
#define LINEAR_REACH 2047
#define MOST_COMPONENTS 12
#define FEW 16 /* channels whose coefficients may be large */
#define LATENT_REACH (1 << 20)
#define COEFFICIENT_REACH (1 << 22) /* half DN */
#define SAMPLE_REACH (1 << 18)
#define ROWS 6 /* sums of 6 rows and 64 outputs are what 24 registers hold */
#define COLUMNS 64
#define PARTS 4 /* that symbols are sorted in */

enum { DONE = 0, FAILED = 1, NO_MEMORY = 2 };

static const int SIZES[GROUPS] = {4, 12, 48, 96, 160};
static const int STARTS[GROUPS] = {0, 4, 16, 64, 160};

/* One integer layer over `taps` neighbours of `inputs` bytes each: activations as they are,
 * companded latents plus 128. */
typedef struct {
    int32_t taps, inputs, outputs;         /* inputs a multiple of 4, outputs of 16 */
    const int8_t *weight;                  /* (taps, inputs / 4, outputs, 4) */
    const int32_t *start;                  /* (outputs): -128 times the sum of its weights */
    const float *scale, *shift;            /* (outputs) */
} layer;

/* A range coder's tables: row i has `count[i]` symbols, whose cumulative frequencies begin at
 * `edges[offset[i]]`; the middle one is the symbol 0. */
typedef struct {
    int32_t silent; /* tables below code nothing */
    const int32_t *count, *offset;
    const uint32_t *edges;
} tables;

typedef struct {
    layer first, second, head;
    int32_t row[MOST_TAPS], column[MOST_TAPS]; /* of the taps */
    const int32_t *linear;                     /* (taps, 4, 4): inputs, outputs; in 1/512 */
} coarse;

typedef struct {
    layer first, second, anchors, neighbours, third, others;
} fine;

typedef struct {
    coarse coarse[COARSE];
    fine fine[FINE];
    tables tables;
} networks;

/* The way from latents to pixels. */
typedef struct {
    layer first, one, two, last;
    const int32_t *starts; /* (5, units): `first.start` of the channels up to each group's last */
    int32_t begin[MOST_COMPONENTS + 1]; /* of each component's pairs */
    int32_t at[MOST_COMPONENTS];        /* and of its pairs of pairs in the matrix */
    const int32_t *channel;             /* of each pair, rising within a component */
    const int16_t *matrix;              /* (pairs of pairs, 64, 2) in 1/2^14 */
    int32_t overlap[64], across[64];    /* in 1/2^11, and transposed */
    int32_t most; /* size that the coefficients of a block may sum to in 32 bits */
} pixels;

/* ---- the range decoder: constriction's, with 32-bit words and a 64-bit state */

typedef struct {
    const uint8_t *words;
    size_t left;
    uint64_t low, size, point;
} range;

static uint32_t next_word(range *r)
{
    if (!r->left) return 0;
    const uint8_t *w = r->words;
    r->words += 4;
    r->left--;
    return w[0] | (uint32_t)w[1] << 8 | (uint32_t)w[2] << 16 | (uint32_t)w[3] << 24;
}

static void begin(range *r, const uint8_t *data, size_t words)
{
    r->words = data;
    r->left = words;
    r->low = 0;
    r->size = UINT64_MAX;
    r->point = (uint64_t)next_word(r) << 32;
    r->point |= next_word(r);
}

static inline void narrow(range *r, uint64_t unit, uint64_t from, uint64_t to)
{
    r->low += unit * from;
    r->size = unit * (to - from);
    if (r->size < (uint64_t)1 << 32) {
        r->low <<= 32;
        r->size <<= 32;
        r->point = r->point << 32 | next_word(r);
    }
}

/* A symbol, from 0, of a table with `count` symbols; -1: the stream is damaged. */
static inline int next_symbol(range *r, const uint32_t *edges, int count)
{
    const uint64_t unit = r->size >> 24, inside = r->point - r->low;
    int k = count / 2;
    /* Most are the middle one: no division for them. */
    if (inside - unit * edges[k] >= unit * (edges[k + 1] - edges[k])) {
        const uint64_t place = inside / unit;
        if (place >> 24) return -1;
        if (place >= edges[k + 1]) {
            do k++;
            while (place >= edges[k + 1]);
        } else {
            do k--;
            while (place < edges[k]);
        }
    }
    narrow(r, unit, edges[k], edges[k + 1]);
    return k;
}

/* A number of 16 bits; -1: the stream is damaged. */
static int32_t next_number(range *r)
{
    const uint64_t unit = r->size >> 24, place = (r->point - r->low) / unit;
    if (place >> 24) return -1;
    narrow(r, unit, place >> 8 << 8, (place >> 8 << 8) + 256);
    return (int32_t)(place >> 8);
}

/* ---- one tile */

/* Flat places of a pass, and the same in a grid with a margin. */
typedef struct {
    int count;
    int32_t *place, *cell;
} places;

typedef struct {
    const networks *net;
    const float *biases, *prior;
    int rows, columns, wide; /* of places, and the columns of a grid with a margin */
    size_t cells;
    range source;
    places some, all;      /* those of a pass; all, in order of the checkerboard's passes */
    int32_t *latents;      /* (places, 320) */
    uint8_t *early, *late; /* (cells, 160): companded latents plus 128 */
    int32_t *whole;        /* (cells, 4): whole latents of the first group */
    uint8_t *hidden;       /* (cells, outputs), zeros outside */
    uint8_t *context, *one, *two; /* (places, outputs) */
    int32_t *linear;              /* (places, 4): of the first group, in 1/512 */
    uint8_t *index;               /* (places, channels) of a pass, as are these: */
    int32_t *mean, *order; /* one more of the last */
} tile;

typedef struct {
    const pixels *net;
    const int32_t *latents; /* (places, 320), zero from `channels` on */
    const float *bias;      /* of the condition, (units) */
    const double *steps;    /* (320), whole 1/256 DN */
    const int32_t *basis, *mean; /* (bands, used) in 1/2^12, (bands) in 1/2^13 DN, with one half */
    int rows, columns, channels, last, used, bands, height, width;
    size_t cells, strip;
    uint8_t *bytes, *hidden, *one, *two, *three;
    int32_t *cell, *coefficients, *strips;
    float *out; /* (bands, height, width), or: */
    uint16_t *whole;
} picture;

typedef int in_pass(int number, int row, int column);

static int in_coarse(int number, int row, int column)
{
    const int r = row & 3, c = column & 3;
    switch (number) {
    case 0: return r == 0 && c == 0;
    case 1: return r == 2 && c == 2;
    case 2: return (r == 0 && c == 2) || (r == 2 && c == 0);
    case 3: return (r & 1) && (c & 1);
    default: return (r + c) & 1;
    }
}

static int in_checker(int number, int row, int column) { return ((row + column) & 1) == number; }

/* Add the places of a pass, row by row. */
static void add_pass(const tile *t, places *to, in_pass *inside, int number)
{
    for (int row = 0; row < t->rows; row++)
        for (int column = 0; column < t->columns; column++)
            if (inside(number, row, column)) {
                to->place[to->count] = row * t->columns + column;
                to->cell[to->count++] = (row + MARGIN) * t->wide + column + MARGIN;
            }
}

/* Everything from here on is compiled for each instruction set. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define NAME(x) x##_avx2
#include "s2_tile.h"
#include "s2_image.h"
#undef NAME
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif
#define AVX512
#define NAME(x) x##_avx512
#include "s2_tile.h"
#include "s2_image.h"
#undef NAME
#undef AVX512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

/* ---- what is called */

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

/* Whether this processor can run any of it. */
int tec_s2_runs_here(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul");
}

/* Sizes of structures, for the caller to compare with its own. */
void tec_s2_sizes(int32_t *out)
{
    out[0] = sizeof(layer);
    out[1] = sizeof(networks);
    out[2] = sizeof(pixels);
}

/* One block for all parts, each on a line of the cache; the block, returned, is to be freed. */
static void *divided(const size_t *sizes, int count, void **parts)
{
    size_t total = 64;
    for (int i = 0; i < count; i++) total += (sizes[i] + 63) / 64 * 64;
    uint8_t *block = malloc(total);
    if (!block) return NULL;
    uint8_t *at = block + (-(uintptr_t)block & 63);
    for (int i = 0; i < count; i++) {
        parts[i] = at;
        at += (sizes[i] + 63) / 64 * 64;
    }
    return block;
}

/* Latents (rows * columns, 320) in 1/16 step of `words` little-endian words, into zeros.
 *
 * `biases` of the condition for the first layers (coarse, then fine), `prior` (320) with one half,
 * `coded` a bit for each channel group that is coded; `narrow` with AVX2 where there is more. */
int tec_s2_latents(const networks *net, const uint8_t *data, size_t words, const float *biases,
                   const float *prior, int32_t rows, int32_t columns, int32_t coded, int32_t narrow,
                   int32_t *latents)
{
    tile t = {.net = net, .biases = biases, .prior = prior, .rows = rows, .columns = columns,
              .wide = columns + 2 * MARGIN, .latents = latents};
    const size_t count = (size_t)rows * columns;
    t.cells = (size_t)(rows + 2 * MARGIN) * t.wide;
    begin(&t.source, data, words);
    const size_t symbols = count * EARLY, sizes[] = {
        t.cells * EARLY, t.cells * EARLY, t.cells * 4 * sizeof(int32_t), t.cells * WIDEST,
        count * WIDEST, count * WIDEST, count * WIDEST, symbols,
        symbols * sizeof(int32_t), (symbols + 1) * sizeof(int32_t),
        count * sizeof(int32_t), count * sizeof(int32_t), count * sizeof(int32_t),
        count * sizeof(int32_t), count * 4 * sizeof(int32_t)};
    void *parts[sizeof sizes / sizeof *sizes];
    void *block = divided(sizes, sizeof sizes / sizeof *sizes, parts);
    if (!block) return NO_MEMORY;
    t.early = parts[0], t.late = parts[1], t.whole = parts[2], t.hidden = parts[3];
    t.context = parts[4], t.one = parts[5], t.two = parts[6], t.index = parts[7];
    t.mean = parts[8], t.order = parts[9];
    t.some.place = parts[10], t.some.cell = parts[11];
    t.all.place = parts[12], t.all.cell = parts[13], t.linear = parts[14];
    const int result =
        !narrow && has_avx512() ? walk_avx512(&t, coded) : walk_avx2(&t, coded);
    free(block);
    return result;
}

/* Whole DN (bands, height, width) in `out`, or without it in `whole`, what lies beyond 0 to 65535
 * as the nearest of these, of latents (places, 320), which are zero from the
 * channel on that group `last` ends with. `bias` of the condition, `steps` (320) in 1/256 DN,
 * `basis` (bands, used) in 1/2^12, `mean` (bands) in 1/2^13 DN, with one half. */
int tec_s2_pixels(const pixels *net, const int32_t *latents, int32_t last, const float *bias,
                  const double *steps, const int32_t *basis, const int32_t *mean, int32_t used,
                  int32_t bands, int32_t height, int32_t width, int32_t narrow, float *out,
                  uint16_t *whole)
{
    picture p = {.net = net, .latents = latents, .bias = bias, .steps = steps, .basis = basis,
                 .mean = mean, .rows = (height + 7) / 8, .columns = (width + 7) / 8,
                 .channels = STARTS[last] + SIZES[last], .last = last, .used = used,
                 .bands = bands, .height = height, .width = width, .out = out, .whole = whole};
    const size_t count = (size_t)p.rows * p.columns, units = net->one.outputs;
    p.cells = (size_t)(p.rows + 2) * (p.columns + 2);
    p.strip = (size_t)used * 64 * p.columns;
    const size_t sizes[] = {
        count * p.channels, count * units, p.cells * units, p.cells * units, count * units,
        count * sizeof(int32_t), (size_t)p.columns * CHANNELS * sizeof(int32_t),
        2 * p.strip * sizeof(int32_t)};
    void *parts[sizeof sizes / sizeof *sizes];
    void *block = divided(sizes, sizeof sizes / sizeof *sizes, parts);
    if (!block) return NO_MEMORY;
    p.bytes = parts[0], p.hidden = parts[1], p.one = parts[2], p.two = parts[3];
    p.three = parts[4], p.cell = parts[5], p.coefficients = parts[6], p.strips = parts[7];
    for (int row = 0, i = 0; row < p.rows; row++)
        for (int column = 0; column < p.columns; column++, i++)
            p.cell[i] = (row + 1) * (p.columns + 2) + column + 1;
    if (!narrow && has_avx512()) draw_avx512(&p);
    else draw_avx2(&p);
    free(block);
    return DONE;
}

/* Turn rows `row - 1` and `row` of the identity (count, count) by `angle`, for one rotation after
 * the other, and round to 2^-24. */
void tec_klt_basis(int32_t count, int32_t rotations, const int32_t *row, const double *angle,
                   double *out)
{
    for (int i = 0; i < count * count; i++) out[i] = i % (count + 1) == 0;
    for (int k = 0; k < rotations; k++) {
        const double cosine = cos(angle[k]), sine = sin(angle[k]);
        double *upper = out + (size_t)(row[k] - 1) * count, *lower = upper + count;
        for (int i = 0; i < count; i++) {
            const double u = upper[i], l = lower[i];
            upper[i] = cosine * u - sine * l;
            lower[i] = cosine * l + sine * u;
        }
    }
    for (int i = 0; i < count * count; i++) out[i] = rint(out[i] * 0x1p24) / 0x1p24;
}

/* zlib's CRC32 of `size` bytes, 64 or more and a multiple of 16, by carry-less products: 64 bytes
 * are folded at a time, then 16, and the rest reduced (Gopal et al., "Fast CRC Computation for
 * Generic Polynomials Using PCLMULQDQ", 2009; its constants for the reflected polynomial). */
__attribute__((target("pclmul,sse4.1")))
static __m128i folded(__m128i x, __m128i k, __m128i next)
{
    const __m128i low = _mm_clmulepi64_si128(x, k, 0x00), high = _mm_clmulepi64_si128(x, k, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

__attribute__((target("pclmul,sse4.1")))
uint32_t tec_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    const __m128i by64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
    const __m128i by16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i by4 = _mm_set_epi64x(0, 0x0163cd6124);
    const __m128i reduce = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i words = _mm_set_epi32(0, -1, 0, -1);
    const __m128i *at = (const __m128i *)data;
    const __m128i *end = at + size / 16;
    __m128i x[4];
    for (int i = 0; i < 4; i++) x[i] = _mm_loadu_si128(at++);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)~crc));
    for (; end - at >= 4; at += 4)
        for (int i = 0; i < 4; i++) x[i] = folded(x[i], by64, _mm_loadu_si128(at + i));
    for (int i = 1; i < 4; i++) x[0] = folded(x[0], by16, x[i]);
    for (; at < end; at++) x[0] = folded(x[0], by16, _mm_loadu_si128(at));
    __m128i rest = _mm_xor_si128(_mm_srli_si128(x[0], 8), _mm_clmulepi64_si128(x[0], by16, 0x10));
    rest = _mm_xor_si128(_mm_srli_si128(rest, 4),
                         _mm_clmulepi64_si128(_mm_and_si128(rest, words), by4, 0x00));
    __m128i whole = _mm_clmulepi64_si128(_mm_and_si128(rest, words), reduce, 0x10);
    whole = _mm_clmulepi64_si128(_mm_and_si128(whole, words), reduce, 0x00);
    return ~(uint32_t)_mm_extract_epi32(_mm_xor_si128(rest, whole), 1);
}
