/* Native values of samples, and the grids of the bands of a tile. Encoders only: sums of doubles are
 * in one order, so all machines find the same.
 *
 * Least squares over all samples: the normal equations of the enlargement are tridiagonal along each
 * axis. Where samples do not matter, conjugate gradients go on from there. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "grids.h"
#include "tile.h"

#define RIDGE 1e-6
#define DESCENTS 40
#define CLOSE 0.02 /* DN, of the steps of a descent */
#define MOST_NATIVE ((1 << 22) - 1)

/* ---- least squares */

/* Solve for native values along the first axis: lines (size, width) to out (values, width). */
FASTEST static int solve(const Axis *axis, const double *lines, int width, double *out) {
    int n = axis->values;
    double *diagonal = calloc(2 * (size_t)n, sizeof *diagonal), *beside = diagonal + n;
    if (!diagonal) return TEC_NO_MEMORY;
    memset(out, 0, sizeof *out * (size_t)n * (size_t)width);
    for (int i = 0; i < axis->size; i++) {
        double share = (double)axis->weight[i] / axis->unit, rest = 1 - share;
        const double *restrict line = lines + (size_t)i * (size_t)width;
        double *restrict first = out + (size_t)axis->first[i] * (size_t)width;
        double *restrict second = out + (size_t)axis->second[i] * (size_t)width;
        diagonal[axis->first[i]] += rest * rest;
        for (int x = 0; x < width; x++) first[x] += line[x] * rest;
        if (axis->second[i] == axis->first[i]) continue;
        diagonal[axis->second[i]] += share * share;
        beside[axis->first[i]] += share * rest;
        for (int x = 0; x < width; x++) second[x] += line[x] * share;
    }
    for (int j = 0; j < n; j++) diagonal[j] += RIDGE;
    for (int j = 1; j < n; j++) {
        double part = beside[j - 1] / diagonal[j - 1];
        double *restrict at = out + (size_t)j * (size_t)width;
        const double *restrict before = at - width;
        diagonal[j] -= part * beside[j - 1];
        for (int x = 0; x < width; x++) at[x] -= part * before[x];
    }
    for (int j = n - 1; j >= 0; j--) {
        double *restrict at = out + (size_t)j * (size_t)width;
        double scale = 1 / diagonal[j];
        const double *restrict behind = j + 1 < n ? at + width : at;
        double part = j + 1 < n ? beside[j] * scale : 0;
        for (int x = 0; x < width; x++) at[x] = at[x] * scale - part * behind[x];
    }
    free(diagonal);
    return TEC_OK;
}

static void transpose(const double *from, int rows, int columns, double *to) {
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < rows; r++) to[(size_t)c * (size_t)rows + r] = from[(size_t)r * (size_t)columns + c];
}

/* ---- conjugate gradients */

/* out (height, width) = native values enlarged, as they are. */
static void blend_real(const Axis *rows, const Axis *columns, const double *native, double *out) {
    for (int y = 0; y < rows->size; y++) {
        const double *a = native + (size_t)rows->first[y] * (size_t)columns->values;
        const double *b = native + (size_t)rows->second[y] * (size_t)columns->values;
        double down = (double)rows->weight[y] / rows->unit;
        for (int x = 0; x < columns->size; x++) {
            int i = columns->first[x], j = columns->second[x];
            double share = (double)columns->weight[x] / columns->unit;
            double left = a[i] + down * (b[i] - a[i]), right = a[j] + down * (b[j] - a[j]);
            *out++ = left + share * (right - left);
        }
    }
}

/* out (values) = sums over the samples that each native value has a part in, by its weight, or by
 * the square of it. Samples that do not matter count as 0, `plane` is 1 if it is null. */
static void gather(const Axis *rows, const Axis *columns, const double *plane, const uint8_t *known,
                   double *out) {
    memset(out, 0, sizeof *out * (size_t)rows->values * (size_t)columns->values);
    for (int y = 0; y < rows->size; y++) {
        double *a = out + (size_t)rows->first[y] * (size_t)columns->values;
        double *b = out + (size_t)rows->second[y] * (size_t)columns->values;
        double down = (double)rows->weight[y] / rows->unit, up = 1 - down;
        for (int x = 0; x < columns->size; x++) {
            size_t at = (size_t)y * (size_t)columns->size + (size_t)x;
            if (!known[at]) continue;
            int i = columns->first[x], j = columns->second[x];
            double share = (double)columns->weight[x] / columns->unit, rest = 1 - share;
            double value = plane ? plane[at] : 1;
            double power[4] = {up * rest, up * share, down * rest, down * share};
            for (int p = 0; p < 4 && !plane; p++) power[p] *= power[p];
            a[i] += power[0] * value, a[j] += power[1] * value;
            b[i] += power[2] * value, b[j] += power[3] * value;
        }
    }
}

static double product(const double *a, const double *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* Go on with native values to the least squares over the samples that matter. */
static int descend(const Axis *rows, const Axis *columns, const double *wanted, const uint8_t *known,
                   double *native) {
    size_t many = (size_t)rows->values * (size_t)columns->values;
    size_t samples = (size_t)rows->size * (size_t)columns->size;
    double *work = malloc(sizeof *work * (4 * many + samples));
    if (!work) return TEC_NO_MEMORY;
    double *diagonal = work, *rest = work + many, *way = work + 2 * many, *back = work + 3 * many;
    double *plane = work + 4 * many, power;
    gather(rows, columns, 0, known, diagonal);
    blend_real(rows, columns, native, plane);
    for (size_t i = 0; i < samples; i++) plane[i] = wanted[i] - plane[i];
    gather(rows, columns, plane, known, rest);
    for (size_t i = 0; i < many; i++) {
        if (diagonal[i] < RIDGE) diagonal[i] = RIDGE;
        way[i] = rest[i] / diagonal[i];
    }
    power = product(rest, way, many);
    for (int round = 0; round < DESCENTS; round++) {
        blend_real(rows, columns, way, plane);
        gather(rows, columns, plane, known, back);
        double by = product(way, back, many), step = power / (by > 1e-30 ? by : 1e-30), most = 0;
        for (size_t i = 0; i < many; i++) {
            double moved = step * way[i];
            native[i] += moved;
            if (moved > most || -moved > most) most = moved < 0 ? -moved : moved;
        }
        if (most < CLOSE) break;
        double before = power;
        for (size_t i = 0; i < many; i++) {
            rest[i] -= step * back[i];
            back[i] = rest[i] / diagonal[i];
        }
        power = product(rest, back, many);
        double keep = power / (before > 1e-30 ? before : 1e-30);
        for (size_t i = 0; i < many; i++) way[i] = back[i] + keep * way[i];
    }
    free(work);
    return TEC_OK;
}

/* ---- fit */

static int all_known(const uint8_t *known, size_t count) {
    return !known || !memchr(known, 0, count);
}

/* The largest value of each cell that matters; 0 where none does. */
static void largest_of_cells(const Axis *rows, const Axis *columns, const int32_t *samples,
                             const uint8_t *known, int32_t *native) {
    size_t many = (size_t)rows->values * (size_t)columns->values;
    for (size_t i = 0; i < many; i++) native[i] = INT32_MIN;
    for (int y = 0; y < rows->size; y++) {
        int32_t *out = native + (size_t)rows->cell[y] * (size_t)columns->values;
        for (int x = 0; x < columns->size; x++, samples++)
            if ((!known || *known++) && *samples > out[columns->cell[x]]) out[columns->cell[x]] = *samples;
    }
    for (size_t i = 0; i < many; i++)
        if (native[i] == INT32_MIN) native[i] = 0;
}

static int fit_bilinear(const Axis *rows, const Axis *columns, const int32_t *samples,
                        const uint8_t *known, int32_t *native) {
    size_t count = (size_t)rows->size * (size_t)columns->size;
    size_t half = (size_t)rows->values * (size_t)columns->size;
    size_t many = (size_t)rows->values * (size_t)columns->values;
    double *wanted = malloc(sizeof *wanted * (count + 2 * half + 2 * many));
    if (!wanted) return TEC_NO_MEMORY;
    double *down = wanted + count, *turned = down + half, *solved = turned + half, *real = solved + many;
    double mean = 0;
    int whole = all_known(known, count);
    if (!whole) {
        size_t there = 0;
        for (size_t i = 0; i < count; i++)
            if (known[i]) mean += samples[i], there++;
        mean /= there ? (double)there : 1;
    }
    for (size_t i = 0; i < count; i++) wanted[i] = whole || known[i] ? samples[i] : mean;
    int status = solve(rows, wanted, columns->size, down);
    transpose(down, rows->values, columns->size, turned);
    if (!status) status = solve(columns, turned, rows->values, solved);
    transpose(solved, columns->values, rows->values, real);
    if (!status && !whole) status = descend(rows, columns, wanted, known, real);
    for (size_t i = 0; i < many && !status; i++) {
        double x = real[i] > MOST_NATIVE ? MOST_NATIVE : real[i] < -MOST_NATIVE ? -MOST_NATIVE : real[i];
        native[i] = (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
    }
    free(wanted);
    return status;
}

int tec_fit(int kind, const Axis *rows, const Axis *columns, const int32_t *samples,
            const uint8_t *known, int32_t *native) {
    if (kind == BILINEAR) return fit_bilinear(rows, columns, samples, known, native);
    largest_of_cells(rows, columns, samples, known, native);
    return TEC_OK;
}
