/* From the samples of a band to its plane. Encoders only.
 *
 * The plane of a band whose cells are larger than its values is smooth, and its mean over each cell
 * is the native value. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "tile.h"

#define SMOOTHINGS 4

/* How positions along an axis of a plane lie between the centres of cells. */
typedef struct {
    int size, cells;
    int32_t *low, *cell; /* the first of two cells; the cell of the position */
    double *part, *count; /* share of the second cell; positions in each cell */
} Between;

static int make_between(Between *b, int factor, int start, int size) {
    int cells = tec_cells(factor, start, size), first = (start + factor - 1) / factor;
    *b = (Between){.size = size, .cells = cells};
    b->part = tec_room((uint64_t)size + (uint64_t)cells, sizeof *b->part);
    b->low = tec_room(2 * (uint64_t)size, sizeof *b->low);
    if (!b->part || !b->low) return TEC_NO_MEMORY;
    b->count = b->part + size, b->cell = b->low + size;
    for (int c = 0; c < cells; c++) b->count[c] = 0;
    for (int i = 0; i < size; i++) {
        double place = (i - start + 0.5) / factor - 0.5 + first;
        place = place < 0 ? 0 : place > cells - 1 ? cells - 1 : place;
        int low = (int)place, most = cells > 2 ? cells - 2 : 0;
        b->low[i] = low < most ? low : most;
        b->part[i] = place - b->low[i];
        b->cell[i] = (i - start + first * factor) / factor;
        b->count[b->cell[i]]++;
    }
    return TEC_OK;
}

static void between_end(Between *b) { free(b->part), free(b->low); }

/* plane += cells interpolated; `line` has room for a row of cells and one more. */
static void add_between(const Between *rows, const Between *columns, const double *cells, double *line, double *plane) {
    int across = columns->cells;
    for (int y = 0; y < rows->size; y++, plane += columns->size) {
        const double *a = cells + (size_t)rows->low[y] * (size_t)across;
        const double *b = rows->cells > 1 ? a + across : a;
        double part = rows->part[y];
        for (int c = 0; c < across; c++) line[c] = a[c] * (1 - part) + b[c] * part;
        line[across] = line[across - 1];
        for (int x = 0; x < columns->size; x++) {
            const double *at = line + columns->low[x];
            plane[x] += at[0] * (1 - columns->part[x]) + at[1] * columns->part[x];
        }
    }
}

/* off = native values less the means of the plane over their cells. */
static void find_off(const Between *rows, const Between *columns, const double *native, const double *plane, double *off) {
    size_t many = (size_t)rows->cells * (size_t)columns->cells;
    memset(off, 0, sizeof *off * many);
    for (int y = 0; y < rows->size; y++) {
        double *out = off + (size_t)rows->cell[y] * (size_t)columns->cells;
        for (int x = 0; x < columns->size; x++) out[columns->cell[x]] += *plane++;
    }
    for (size_t i = 0; i < many; i++)
        off[i] = native[i] - off[i] / (rows->count[i / (size_t)columns->cells] * columns->count[i % (size_t)columns->cells]);
}

static int smooth(const TecGrid *cells, const double *native, int height, int width, double *plane) {
    Between rows = {.size = 0}, columns = {.size = 0};
    int status = make_between(&rows, cells->factor, cells->row, height);
    if (!status) status = make_between(&columns, cells->factor, cells->column, width);
    size_t many = (size_t)rows.cells * (size_t)columns.cells;
    double *off = status ? 0 : tec_room(many + (uint64_t)columns.cells + 1, sizeof *off);
    if (!status && !off) status = TEC_NO_MEMORY;
    if (!status) {
        double *line = off + many;
        memset(plane, 0, sizeof *plane * (size_t)height * (size_t)width);
        add_between(&rows, &columns, native, line, plane);
        for (int round = 0; round < SMOOTHINGS; round++) {
            find_off(&rows, &columns, native, plane, off);
            add_between(&rows, &columns, off, line, plane);
        }
        find_off(&rows, &columns, native, plane, off);
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                *plane++ += off[(size_t)rows.cell[y] * (size_t)columns.cells + (size_t)columns.cell[x]];
    }
    free(off);
    between_end(&rows), between_end(&columns);
    return status;
}

/* Cells that have no part in a measured sample go on smoothly: they get the mean of their samples. */
static void fill_unknown(const Axis *rows, const Axis *columns, const int32_t *samples, const uint8_t *known,
                         int64_t *work, int32_t *native) {
    size_t many = (size_t)rows->values * (size_t)columns->values, width = (size_t)columns->values;
    int64_t *touched = work, *sums = work + many, *counts = work + 2 * many;
    memset(work, 0, sizeof *work * 3 * many);
    for (int y = 0; y < rows->size; y++)
        for (int x = 0; x < columns->size; x++, samples++, known++) {
            size_t at = (size_t)rows->cell[y] * width + (size_t)columns->cell[x];
            sums[at] += *samples, counts[at]++;
            if (!*known) continue;
            for (int part = 0; part < 4; part++) {
                int r = part / 2 ? rows->second[y] : rows->first[y];
                int c = part % 2 ? columns->second[x] : columns->first[x];
                touched[(size_t)r * width + (size_t)c] = 1;
            }
        }
    for (size_t i = 0; i < many; i++)
        if (!touched[i] && counts[i]) native[i] = (int32_t)(sums[i] / counts[i]);
}

/* The native values of the cells that samples lie in. */
static int find_native(const TecGrid *grid, const int32_t *samples, const uint8_t *known, int height,
                       int width, double *out) {
    Axis rows = {.first = 0}, columns = {.first = 0};
    int status = tec_axis(&rows, grid->kind, grid->factor, grid->row, height);
    if (!status) status = tec_axis(&columns, grid->kind, grid->factor, grid->column, width);
    size_t many = status ? 0 : (size_t)rows.values * (size_t)columns.values;
    int32_t *native = status ? 0 : tec_room(many, sizeof *native);
    int64_t *work = status || !known ? 0 : tec_room(3 * many, sizeof *work);
    if (!status && (!native || (known && !work))) status = TEC_NO_MEMORY;
    if (!status) status = tec_fit(grid->kind, &rows, &columns, samples, known, native);
    if (!status && known) fill_unknown(&rows, &columns, samples, known, work, native);
    for (int r = rows.before; !status && r < rows.values - rows.after; r++)
        for (int c = columns.before; c < columns.values - columns.after; c++)
            *out++ = native[(size_t)r * (size_t)columns.values + (size_t)c];
    free(native), free(work);
    tec_axis_end(&rows), tec_axis_end(&columns);
    return status;
}

/* Samples go to a plane of level 0 that begins with a margin of the values beside it. */
static void put_margin(const Layout *l, const double *from, double *plane) {
    int top = l->margin[0], left = l->margin[1];
    for (int y = 0; y < l->plane_height[0]; y++) {
        const double *line = from + (int64_t)(y < top ? 0 : y - top) * l->width;
        for (int x = 0; x < l->plane_width[0]; x++) *plane++ = line[x < left ? 0 : x - left];
    }
}

int tec_plane(const Layout *l, int band, const int32_t *samples, const uint8_t *known, double *plane) {
    const TecGrid *grid = &l->grids[band];
    int64_t count = (int64_t)l->height * l->width;
    int level = l->level[band], status = TEC_OK;
    double *work = tec_room(2 * (uint64_t)(count + l->height + l->width + 1), sizeof *work);
    if (!work) return TEC_NO_MEMORY;
    double *from = work, *native = work + count + l->height + l->width + 1;
    if (known && !memchr(known, 0, (size_t)count)) known = 0;
    if (grid->factor) {
        double *out = l->cells[band].factor > 1 ? native : plane; /* of level 1, else they are larger */
        status = find_native(grid, samples, known, l->height, l->width, out);
        if (!status && l->cells[band].factor > 1)
            status = smooth(&l->cells[band], native, level ? l->plane_height[1] : l->height,
                            level ? l->plane_width[1] : l->width, level ? plane : from);
    } else
        for (int64_t i = 0; i < count; i++) from[i] = samples[i];
    if (!status && !level) put_margin(l, from, plane);
    free(work);
    return status;
}
