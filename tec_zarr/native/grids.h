/* Grids that a sensor measured on, and the enlargement of native values in whole numbers. */
#ifndef TEC_GRIDS_H
#define TEC_GRIDS_H

#include <stdint.h>

#include "tec.h"

#define MOST_FACTOR 8

enum { REPEATED = 0, BILINEAR = 1 };

/* One axis of an enlargement. A sample lies in one cell, and between two native values, of which
 * the second one has `weight` of `unit`. `before` and `after` count native values beyond the cells
 * of the first and the last sample: native values are counted from there, cells too. */
typedef struct {
    int size, values, unit, before, after;
    int32_t *first, *second, *weight, *cell;
} Axis;

int tec_is_grid(const TecGrid *grid);

/* Make the axis of `size` samples whose first whole cell begins at `start`. */
int tec_axis(Axis *axis, int kind, int factor, int start, int size);
void tec_axis_end(Axis *axis);

/* How many cells samples 0 .. size - 1 lie in. */
int tec_cells(int factor, int start, int size);

/* Enlarge native values (rows.values, columns.values) of less than 2^22; `work` has room for two
 * rows of samples. Row y goes to samples + y * columns.size. */
void tec_enlarge_values(int kind, int factor, const Axis *rows, const Axis *columns,
                        const int32_t *native, int32_t *work, int32_t *samples);

/* The same from the cells that `height` x `width` samples lie in. A cell beyond them, which has a
 * part in bilinear samples at the edge, has the value of the cell beside it. */
int tec_enlarge(const TecGrid *grid, const int32_t *native, int height, int width, int32_t *samples);

/* ---- grids_fit.c: for encoders */

/* Find native values (rows.values, columns.values) whose enlargement is nearest to samples, of less
 * than 2^21. `known` is 0 for samples that do not matter; null: all do. */
int tec_fit(int kind, const Axis *rows, const Axis *columns, const int32_t *samples,
            const uint8_t *known, int32_t *native);

/* ---- grids_search.c: for encoders */

/* Move native values by one, or blocks of 2 x 2 of them (`span` 2), where fewer samples are wrong
 * then; `known` as above. */
int tec_grid_search(int kind, int factor, int row, int column, int height, int width,
                    const int32_t *samples, const uint8_t *known, int span, int32_t *native);

#endif
