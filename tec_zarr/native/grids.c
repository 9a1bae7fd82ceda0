/* The enlargement of native values to samples; grids.h. */
#include "grids.h"

#include "fastest.h"

#include <stdlib.h>
#include <string.h>

static int floor_of(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

int tec_is_grid(const TecGrid *grid) {
    return (grid->kind == REPEATED || grid->kind == BILINEAR) && grid->factor >= 2 &&
           grid->factor <= MOST_FACTOR && grid->row >= 0 && grid->row < grid->factor &&
           grid->column >= 0 && grid->column < grid->factor;
}

int tec_axis(Axis *axis, int kind, int factor, int start, int size) {
    if (size < 1) return TEC_BAD_ARGUMENT;
    int32_t *all = malloc(4 * sizeof *all * (size_t)size);
    if (!all) return TEC_NO_MEMORY;
    *axis = (Axis){size, 0, kind == REPEATED ? 1 : 2 * factor, 0, 0,
                   all, all + size, all + 2 * (size_t)size, all + 3 * (size_t)size};
    for (int i = 0; i < size; i++) {
        int cell = floor_of(i - start, factor), place = 2 * (i - start) + 1 - factor;
        axis->cell[i] = cell;
        axis->first[i] = kind == REPEATED ? cell : floor_of(place, 2 * factor);
        axis->weight[i] = kind == REPEATED ? 0 : place - 2 * factor * axis->first[i];
        axis->second[i] = axis->first[i] + (axis->weight[i] > 0);
    }
    int low = axis->first[0], high = axis->second[size - 1];
    axis->values = high - low + 1;
    axis->before = axis->cell[0] - low;
    axis->after = high - axis->cell[size - 1];
    for (int i = 0; i < size; i++) {
        axis->first[i] -= low;
        axis->second[i] -= low;
        axis->cell[i] -= low;
    }
    return TEC_OK;
}

void tec_axis_end(Axis *axis) { free(axis->first); }

int tec_cells(int factor, int start, int size) {
    return floor_of(size - 1 - start, factor) - floor_of(-start, factor) + 1;
}

/* Sums of less than 2^30 become whole numbers below 2^31 before they are divided. */
#define SHIFT (1 << 22)

static inline void __attribute__((always_inline))
blend_rows(const int32_t *a, const int32_t *b, int32_t weight, int factor, int width, int32_t *out) {
    int32_t unit = 2 * factor;
    uint32_t area = (uint32_t)(4 * factor * factor), add = area * SHIFT + area / 2;
    for (int x = 0; x < width; x++) {
        uint32_t sum = (uint32_t)(a[x] * (unit - weight) + b[x] * weight) + add;
        out[x] = (int32_t)(sum / area) - SHIFT;
    }
}

/* One loop for each factor, so that the division is by a constant. */
FASTEST static void blend(const int32_t *restrict a, const int32_t *restrict b, int32_t weight, int factor,
                          int width, int32_t *restrict out) {
    switch (factor) {
    case 2: blend_rows(a, b, weight, 2, width, out); break;
    case 3: blend_rows(a, b, weight, 3, width, out); break;
    case 4: blend_rows(a, b, weight, 4, width, out); break;
    case 5: blend_rows(a, b, weight, 5, width, out); break;
    case 6: blend_rows(a, b, weight, 6, width, out); break;
    case 7: blend_rows(a, b, weight, 7, width, out); break;
    default: blend_rows(a, b, weight, 8, width, out); break;
    }
}

FASTEST static void widen(const Axis *axis, const int32_t *restrict native, int32_t *restrict out) {
    int x = 0;
    if (axis->unit == 4) { /* bilinear by 2: every other sample lies in the same way */
        const int32_t *near[2] = {native + axis->first[0], native + axis->first[axis->size > 1]};
        int32_t one = axis->weight[0], other = axis->weight[axis->size > 1];
        for (int i = 0; i < axis->size / 2; i++) {
            out[2 * i] = near[0][i] * (4 - one) + near[0][i + 1] * one;
            out[2 * i + 1] = near[1][i] * (4 - other) + near[1][i + 1] * other;
        }
        x = axis->size / 2 * 2;
    }
    for (; x < axis->size; x++)
        out[x] = native[axis->first[x]] * (axis->unit - axis->weight[x]) +
                 native[axis->second[x]] * axis->weight[x];
}

void tec_enlarge_values(int kind, int factor, const Axis *rows, const Axis *columns,
                        const int32_t *native, int32_t *work, int32_t *samples) {
    size_t width = (size_t)columns->size;
    int32_t *wide[2] = {work, work + width};
    int held[2] = {-1, -1}; /* a row and the one after it are held in turn */
    for (int y = 0; y < rows->size; y++, samples += width) {
        int of[2] = {rows->first[y], rows->second[y]};
        for (int part = 0; part < 2; part++) {
            int at = of[part] & 1;
            if (held[at] == of[part]) continue;
            held[at] = of[part];
            widen(columns, native + (size_t)of[part] * (size_t)columns->values, wide[at]);
        }
        if (kind == REPEATED) memcpy(samples, wide[of[0] & 1], sizeof *samples * width);
        else blend(wide[of[0] & 1], wide[of[1] & 1], rows->weight[y], factor, (int)width, samples);
    }
}

/* Give the cells beyond the edges the values of those beside them. */
static void surround(const Axis *rows, const Axis *columns, const int32_t *native, int32_t *out) {
    int across = columns->values - columns->before - columns->after;
    int down = rows->values - rows->before - rows->after;
    for (int r = -rows->before; r < down + rows->after; r++) {
        const int32_t *from = native + (size_t)(r < 0 ? 0 : r >= down ? down - 1 : r) * (size_t)across;
        for (int i = 0; i < columns->before; i++) *out++ = from[0];
        memcpy(out, from, sizeof *out * (size_t)across);
        out += across;
        for (int i = 0; i < columns->after; i++) *out++ = from[across - 1];
    }
}

int tec_enlarge(const TecGrid *grid, const int32_t *native, int height, int width, int32_t *samples) {
    Axis rows = {.first = 0}, columns = {.first = 0};
    int status = tec_axis(&rows, grid->kind, grid->factor, grid->row, height);
    if (!status) status = tec_axis(&columns, grid->kind, grid->factor, grid->column, width);
    int32_t *work = 0;
    if (!status) {
        size_t values = (size_t)rows.values * (size_t)columns.values;
        work = malloc(sizeof *work * (values + 2 * (size_t)width));
        status = work ? TEC_OK : TEC_NO_MEMORY;
        if (work) {
            surround(&rows, &columns, native, work);
            tec_enlarge_values(grid->kind, grid->factor, &rows, &columns, work, work + values, samples);
        }
    }
    free(work);
    tec_axis_end(&rows), tec_axis_end(&columns);
    return status;
}
