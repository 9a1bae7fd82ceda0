/* The lapped transform: coefficients to planes for decoders, planes to coefficients for encoders.
 *
 * Both go through a plane by rows of blocks. Vectors hold the same sample of neighbouring blocks.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "lanes.h"
#include "tile.h"

/* ---- synthesis of a band */

/* Its sums are whole numbers below 2^53: to fuse products with them changes nothing. */
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED
#endif

/* Blocks of one row of blocks: [i * size + j] is sample (i, j) of all of them, `pitch` doubles. */
typedef struct {
    double *at[2]; /* of the row before, of this row */
    int size, cols, pitch;
} Stripe;

/* The frequencies along one axis that are not zero: first even ones, then odd ones. */
typedef struct {
    int even, count, at[MOST_SIZE];
} Live;

/* out[i * step] of size samples from the coefficients in[live.at[n] * stride]. Cosines of even
 * frequencies are even about the middle, the others odd. */
static inline void __attribute__((always_inline))
expand(const double (*dct)[MOST_SIZE], const int size, const Live *live, const Lanes *in, int stride,
       Lanes *out, int step) {
    const int half = size / 2;
    Lanes even[MOST_SIZE / 2], odd[MOST_SIZE / 2];
    for (int j = 0; j < half; j++) even[j] = all(0.5), odd[j] = all(0);
    for (int n = 0; n < live->even; n++) {
        Lanes x = in[live->at[n] * stride];
        const double *row = dct[live->at[n]];
        for (int j = 0; j < half; j++) even[j] += x * row[j];
    }
    for (int n = live->even; n < live->count; n++) {
        Lanes x = in[live->at[n] * stride];
        const double *row = dct[live->at[n]];
        for (int j = 0; j < half; j++) odd[j] += x * row[j];
    }
    const double unit = 1.0 / (1 << 14);
    for (int j = 0; j < half; j++) {
        out[j * step] = nearest((even[j] + odd[j]) * unit);
        out[(size - 1 - j) * step] = nearest((even[j] - odd[j]) * unit);
    }
}

/* Samples of a row of blocks before the overlap. */
static inline void __attribute__((always_inline))
expand_blocks(const double (*dct)[MOST_SIZE], const int size, const int32_t *coefficients,
              int64_t blocks, const Live *across, const Live *down, Stripe *s) {
    Lanes in[MOST_SIZE], half_way[MOST_SIZE * MOST_SIZE], out[MOST_SIZE];
    for (int c = 0; c < s->cols; c += LANES) {
        for (int n = 0; n < down->count; n++) {
            int u = down->at[n];
            for (int k = 0; k < across[u].count; k++) {
                int v = across[u].at[k];
                in[v] = load_whole(coefficients + (u * size + v) * blocks + c);
            }
            expand(dct, size, &across[u], in, 1, half_way + u * size, 1);
        }
        for (int j = 0; j < size; j++) {
            expand(dct, size, down, half_way + j, size, out, 1);
            for (int i = 0; i < size; i++) store(s->at[1] + (i * size + j) * s->pitch + c, out[i]);
        }
    }
}

/* What the overlap adds to `size / 2` samples behind a boundary, and takes off those before it. */
static inline void __attribute__((always_inline))
overlap(const double (*matrix)[MOST_SIZE / 2], const int half, double *before, int64_t back,
        double *behind, int64_t forth) {
    Lanes apart[MOST_SIZE / 2];
    for (int n = 0; n < half; n++) apart[n] = load(behind + n * forth) - load(before - n * back);
    for (int m = 0; m < half; m++) {
        Lanes change = all(0.5);
        for (int n = 0; n < half; n++) change += matrix[m][n] * apart[n];
        change = nearest(change * (1.0 / (1 << 14)));
        store(behind + m * forth, load(behind + m * forth) + change);
        store(before - m * back, load(before - m * back) - change);
    }
}

static inline void __attribute__((always_inline))
overlap_rows(const double (*matrix)[MOST_SIZE / 2], const int size, Stripe *s) {
    int64_t line = (int64_t)size * s->pitch;
    for (int j = 0; j < size; j++)
        for (int c = 0; c < s->cols; c += LANES)
            overlap(matrix, size / 2, s->at[0] + (size - 1) * line + j * s->pitch + c, line,
                    s->at[1] + j * s->pitch + c, line);
}

/* The samples of row `i` of the blocks of the row before, whole and within 2^26, to out. */
static inline void __attribute__((always_inline))
finish_row(const double (*matrix)[MOST_SIZE / 2], const int size, Stripe *s, int i, int32_t *out) {
    double *row = s->at[0] + (int64_t)i * size * s->pitch;
    for (int m = 0; m < size / 2; m++) { /* nothing changes behind the last block */
        double *behind = row + m * s->pitch + s->cols;
        behind[0] = row[(size - 1 - m) * s->pitch + s->cols - 1];
        behind[1] = behind[2] = 0; /* the rest of a vector */
    }
    for (int c = 0; c < s->cols - 1; c += LANES)
        overlap(matrix, size / 2, row + (size - 1) * s->pitch + c, s->pitch, row + c + 1, s->pitch);
    for (int c = 0; c < s->cols; c += LANES) {
        for (int j = 0; j < size; j += LANES) {
            WholeLanes x[LANES];
            for (int n = 0; n < LANES; n++) x[n] = whole(clip(load(row + (j + n) * s->pitch + c), 1 << 26));
            put_turned(x, out + c * size + j, size);
        }
    }
}

/* Which frequencies of a row of blocks are not zero: `across[u]` along v, `down` along u. */
static void find_live(const uint8_t *alive, int rows, int size, Live *across, Live *down) {
    for (int u = 0; u < size; u++) {
        Live *live = &across[u];
        live->count = 0;
        for (int odd = 0; odd < 2; odd++) {
            for (int v = odd; v < size; v += 2)
                if (alive[(u * MOST_SIZE + v) * rows]) live->at[live->count++] = v;
            if (!odd) live->even = live->count;
        }
    }
    down->count = 0;
    for (int odd = 0; odd < 2; odd++) {
        for (int u = odd; u < size; u += 2)
            if (across[u].count) down->at[down->count++] = u;
        if (!odd) down->even = down->count;
    }
}

static inline void __attribute__((always_inline))
synthesise(const TecModel *m, const Layout *l, int level, const int size, const int32_t *coefficients,
           const uint8_t *alive, int32_t mean, int units, Stripe *s, int32_t *line, int32_t *out) {
    const double (*dct)[MOST_SIZE] = m->dct_back[level];
    const double (*matrix)[MOST_SIZE / 2] = m->overlap_back[level];
    Live across[MOST_SIZE], down;
    int top = level ? 0 : l->margin[0], left = level ? 0 : l->margin[1];
    int height = l->plane_height[level], width = l->plane_width[level] - left;
    for (int r = 0; r <= l->rows; r++) {
        if (r < l->rows) {
            find_live(alive + r, l->rows, size, across, &down);
            expand_blocks(dct, size, coefficients + (int64_t)r * l->cols, (int64_t)l->rows * l->cols, across, &down, s);
            if (r) overlap_rows(matrix, size, s);
        }
        for (int i = 0; i < size && r; i++) {
            int y = (r - 1) * size + i;
            if (y < top || y >= height) continue;
            finish_row(matrix, size, s, i, line);
            int32_t add = UNITS * mean + (units ? 0 : UNITS / 2), down_by = units ? 0 : 6;
            for (int x = 0; x < width; x++) out[x] = (line[left + x] + add) >> down_by;
            out += width;
        }
        double *swap = s->at[0];
        s->at[0] = s->at[1], s->at[1] = swap;
    }
}

FASTEST FUSED static void synthesise_fine(const TecModel *m, const Layout *l, const int32_t *coefficients,
                                    const uint8_t *alive, int32_t mean, int units, Stripe *s,
                                    int32_t *line, int32_t *out) {
    synthesise(m, l, 0, MOST_SIZE, coefficients, alive, mean, units, s, line, out);
}

FASTEST FUSED static void synthesise_coarse(const TecModel *m, const Layout *l, const int32_t *coefficients,
                                      const uint8_t *alive, int32_t mean, int units, Stripe *s,
                                      int32_t *line, int32_t *out) {
    synthesise(m, l, 1, MOST_SIZE / 2, coefficients, alive, mean, units, s, line, out);
}

int tec_synthesise(const TecModel *m, const Layout *l, int level, const int32_t *coefficients,
                   const uint8_t *alive, int32_t mean, int units, int32_t *out) {
    int size = MOST_SIZE >> level, pitch = (l->cols + 2 * LANES) / LANES * LANES;
    int64_t stripe = (int64_t)size * size * pitch;
    double *work = tec_room((uint64_t)stripe * 2 + (uint64_t)pitch * MOST_SIZE / 2, sizeof *work);
    if (!work) return TEC_NO_MEMORY;
    memset(work, 0, sizeof *work * (size_t)(2 * stripe));
    Stripe s = {{work, work + stripe}, size, l->cols, pitch};
    int32_t *line = (int32_t *)(work + 2 * stripe);
    if (level) synthesise_coarse(m, l, coefficients, alive, mean, units, &s, line, out);
    else synthesise_fine(m, l, coefficients, alive, mean, units, &s, line, out);
    free(work);
    return TEC_OK;
}

/* ---- analysis of a band */

/* What the overlap changes before the transform of blocks; see overlap(). */
static inline void __attribute__((always_inline))
lap(const double (*matrix)[MOST_SIZE / 2], const int half, double *before, int64_t back, double *behind,
    int64_t forth) {
    Lanes apart[MOST_SIZE / 2];
    for (int n = 0; n < half; n++) apart[n] = load(behind + n * forth) - load(before - n * back);
    for (int m = 0; m < half; m++) {
        Lanes change = matrix[m][0] * apart[0];
        for (int n = 1; n < half; n++) change += matrix[m][n] * apart[n];
        store(behind + m * forth, load(behind + m * forth) + change);
        store(before - m * back, load(before - m * back) - change);
    }
}

/* out[u * step] of size coefficients from samples in[i * stride]. */
static inline void __attribute__((always_inline))
transform(const double (*dct)[MOST_SIZE], const int size, const Lanes *in, int stride, Lanes *out, int step) {
    const int half = size / 2;
    Lanes even[MOST_SIZE / 2], odd[MOST_SIZE / 2];
    for (int i = 0; i < half; i++) {
        Lanes a = in[i * stride], b = in[(size - 1 - i) * stride];
        even[i] = a + b, odd[i] = a - b;
    }
    for (int u = 0; u < size; u++) {
        const Lanes *from = u % 2 ? odd : even;
        Lanes sum = dct[u][0] * from[0];
        for (int i = 1; i < half; i++) sum += dct[u][i] * from[i];
        out[u * step] = sum;
    }
}

/* Values go on beyond the `many` that are there: from the last one quickly to the mean of the last
 * eight, and with it slowly to zero. That takes fewer bits than the last value alone. */
static void go_on(double *values, int many, int all, int64_t stride) {
    const double *last = values + (many - 1) * stride;
    int near = many < 8 ? many : 8;
    double mean = 0, off;
    for (int i = 0; i < near; i++) mean += last[-i * stride];
    mean /= near, off = *last - mean;
    for (int i = many; i < all; i++) values[i * stride] = (mean *= 0.95) + (off *= 0.8);
}

/* A plane less its mean, filled up to whole blocks; null if there is no memory. */
static double *fill_up(const double *plane, int height, int width, double mean, int rows, int cols) {
    double *out = tec_room((uint64_t)rows * (uint64_t)cols, sizeof *out);
    for (int y = 0; y < height && out; y++) {
        double *line = out + (int64_t)y * cols;
        for (int x = 0; x < width; x++) line[x] = plane[(int64_t)y * width + x] - mean;
        go_on(line, width, cols, 1);
    }
    for (int x = 0; x < cols && out; x++) go_on(out + x, height, rows, cols);
    return out;
}

/* Read a row of blocks. */
static void read_blocks(const double *plane, int r, Stripe *s) {
    int width = s->cols * s->size;
    for (int i = 0; i < s->size; i++) {
        const double *line = plane + (int64_t)(r * s->size + i) * width;
        double *out = s->at[1] + (int64_t)i * s->size * s->pitch;
        for (int c = 0; c < s->cols; c++)
            for (int j = 0; j < s->size; j++) out[j * s->pitch + c] = *line++;
    }
}

static inline void __attribute__((always_inline))
analyse(const TecModel *m, const Layout *l, int level, const int size, const double *plane, const double *gain,
        Stripe *s, double *out) {
    const double (*dct)[MOST_SIZE] = m->dct[level];
    const double (*matrix)[MOST_SIZE / 2] = m->overlap[level];
    int64_t line = (int64_t)size * s->pitch, blocks = (int64_t)l->rows * l->cols;
    Lanes in[MOST_SIZE], half_way[MOST_SIZE * MOST_SIZE], done[MOST_SIZE];
    for (int r = 0; r <= l->rows; r++) {
        if (r < l->rows) {
            read_blocks(plane, r, s);
            for (int i = 0; i < size; i++) {
                double *row = s->at[1] + i * line;
                for (int k = 0; k < size / 2; k++) {
                    double *behind = row + k * s->pitch + s->cols;
                    behind[0] = row[(size - 1 - k) * s->pitch + s->cols - 1];
                    behind[1] = behind[2] = 0;
                }
                for (int c = 0; c < s->cols - 1; c += LANES)
                    lap(matrix, size / 2, row + (size - 1) * s->pitch + c, s->pitch, row + c + 1, s->pitch);
            }
        }
        for (int j = 0; j < size && r && r < l->rows; j++)
            for (int c = 0; c < s->cols; c += LANES)
                lap(matrix, size / 2, s->at[0] + (size - 1) * line + j * s->pitch + c, line,
                    s->at[1] + j * s->pitch + c, line);
        for (int c = 0; c < s->cols && r; c += LANES) {
            for (int i = 0; i < size; i++) {
                for (int j = 0; j < size; j++) in[j] = load(s->at[0] + i * line + j * s->pitch + c);
                transform(dct, size, in, 1, half_way + i * size, 1);
            }
            for (int v = 0; v < size; v++) {
                transform(dct, size, half_way + v, size, done, 1);
                for (int u = 0; u < size; u++) {
                    double *to = out + (u * size + v) * blocks + (int64_t)(r - 1) * l->cols + c;
                    Lanes x = done[u] * (gain[u] * gain[v]);
                    if (c + LANES <= s->cols) store(to, x);
                    else
                        for (int n = 0; c + n < s->cols; n++) to[n] = x[n];
                }
            }
        }
        double *swap = s->at[0];
        s->at[0] = s->at[1], s->at[1] = swap;
    }
}

FASTEST static void analyse_fine(const TecModel *m, const Layout *l, const double *plane, const double *gain,
                                 Stripe *s, double *out) {
    analyse(m, l, 0, MOST_SIZE, plane, gain, s, out);
}

FASTEST static void analyse_coarse(const TecModel *m, const Layout *l, const double *plane, const double *gain,
                                   Stripe *s, double *out) {
    analyse(m, l, 1, MOST_SIZE / 2, plane, gain, s, out);
}

int tec_analyse(const TecModel *m, const Layout *l, int band, const double *plane, double mean, double *out) {
    int level = l->level[band], size = MOST_SIZE >> level, pitch = (l->cols + 2 * LANES) / LANES * LANES;
    int64_t stripe = (int64_t)size * size * pitch;
    const int32_t *gains = m->gains[level ? 1 + l->grids[band].kind : 0][l->cells[band].factor - 1];
    double gain[MOST_SIZE], *work = tec_room((uint64_t)stripe * 2, sizeof *work);
    double *whole = fill_up(plane, l->plane_height[level], l->plane_width[level], mean, l->rows * size, l->cols * size);
    if (!work || !whole) {
        free(work), free(whole);
        return TEC_NO_MEMORY;
    }
    memset(work, 0, sizeof *work * (size_t)(2 * stripe));
    for (int u = 0; u < size; u++) gain[u] = gains[u] / 65536.0;
    Stripe s = {{work, work + stripe}, size, l->cols, pitch};
    if (level) analyse_coarse(m, l, whole, gain, &s, out);
    else analyse_fine(m, l, whole, gain, &s, out);
    free(work), free(whole);
    return TEC_OK;
}
