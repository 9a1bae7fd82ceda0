/* Moves native values by one where fewer samples are wrong then. Encoders only. */
#include "fastest.h"
#include "grids.h"

#include <stdlib.h>
#include <string.h>

#define ROUNDS 6
#define CLOSER 64 /* squared DN that one wrong sample more is worth */
#define MOST_AROUND (3 * MOST_FACTOR * 3 * MOST_FACTOR) /* samples that hang on a block */
#define FARTHEST 32767

typedef struct {
    const Axis *rows, *columns;
    int area, span;
    int32_t *error; /* of each sample, in 1 / area DN */
    const uint8_t *known;
    int32_t *native;
} Search;

/* The samples that hang on `span` native values along an axis, from the first of them. */
static void around(const Axis *axis, int at, int span, int *from, int *to) {
    int i = *from;
    while (i > 0 && axis->second[i - 1] >= at) i--;
    while (i < axis->size && axis->second[i] < at) i++;
    *from = i;
    while (i < axis->size && axis->first[i] < at + span) i++;
    *to = i;
}

static int32_t weight_of(const Axis *axis, int sample, int value) {
    return (axis->first[sample] == value ? axis->unit - axis->weight[sample] : 0) +
           (axis->second[sample] == value ? axis->weight[sample] : 0) * (axis->weight[sample] > 0);
}

FASTEST static int64_t cost_of(const int32_t *restrict before, const int32_t *restrict move, int count, int area) {
    int32_t bad = 0, half = area / 2;
    int64_t far = 0;
    for (int i = 0; i < count; i++) {
        int32_t after = before[i] + move[i];
        bad += (after < -half) | (after >= half);
        after = after < -FARTHEST ? -FARTHEST : after > FARTHEST ? FARTHEST : after;
        far += after * after;
    }
    return (int64_t)bad * CLOSER * area * area + far;
}

/* Make the best move of a block of span x span native values; return whether it is one. */
FASTEST static int improve(const Search *s, int row, int column) {
    int32_t before[MOST_AROUND], weights[4][MOST_AROUND], move[MOST_AROUND], best_move[MOST_AROUND];
    int64_t places[MOST_AROUND];
    int values = s->span * s->span, count = 0, moves = s->span == 1 ? 3 : 81, best = 0;
    int top = (int)((int64_t)row * s->rows->size / s->rows->values), bottom;
    int left = (int)((int64_t)column * s->columns->size / s->columns->values), right;
    around(s->rows, row, s->span, &top, &bottom);
    around(s->columns, column, s->span, &left, &right);
    for (int y = top; y < bottom; y++)
        for (int x = left; x < right; x++) {
            int64_t at = (int64_t)y * s->columns->size + x;
            if ((s->known && !s->known[at]) || count == MOST_AROUND) continue;
            int32_t any = 0;
            for (int i = 0; i < values; i++) {
                weights[i][count] = weight_of(s->rows, y, row + i / s->span) *
                                    weight_of(s->columns, x, column + i % s->span);
                any |= weights[i][count];
            }
            if (!any) continue;
            before[count] = s->error[at];
            places[count++] = at;
        }
    memset(move, 0, sizeof move);
    int64_t least = cost_of(before, move, count, s->area);
    for (int code = 1; code < moves; code++) {
        int steps[4], rest = code;
        for (int i = 0; i < values; i++) {
            steps[i] = rest % 3 == 2 ? -1 : rest % 3;
            rest /= 3;
        }
        for (int k = 0; k < count; k++) {
            int32_t sum = 0;
            for (int i = 0; i < values; i++) sum += steps[i] * weights[i][k];
            move[k] = sum;
        }
        int64_t cost = cost_of(before, move, count, s->area);
        if (cost >= least) continue;
        least = cost, best = code;
        memcpy(best_move, move, sizeof *move * (size_t)count);
    }
    if (!best) return 0;
    for (int k = 0; k < count; k++) s->error[places[k]] += best_move[k];
    for (int i = 0, rest = best; i < values; i++, rest /= 3)
        s->native[(int64_t)(row + i / s->span) * s->columns->values + column + i % s->span] +=
            rest % 3 == 2 ? -1 : rest % 3;
    return 1;
}

/* `settled` blocks were tried, and nothing around them has moved since. */
static int search(const Search *s, uint8_t *found, uint8_t *settled) {
    const Axis *rows = s->rows, *columns = s->columns;
    int half = s->area / 2, better = 0, down = rows->values - s->span + 1, across = columns->values - s->span + 1;
    memset(found, 0, (size_t)down * (size_t)across);
    for (int y = 0; y < rows->size; y++)
        for (int x = 0; x < columns->size; x++) {
            int64_t at = (int64_t)y * columns->size + x;
            if ((s->error[at] >= -half && s->error[at] < half) || (s->known && !s->known[at])) continue;
            for (int part = 0; part < (s->span == 1 ? 4 : 1); part++) {
                int row = part & 1 ? rows->second[y] : rows->first[y];
                int column = part & 2 ? columns->second[x] : columns->first[x];
                found[(int64_t)(row < down ? row : down - 1) * across + (column < across ? column : across - 1)] = 1;
            }
        }
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across; x++)
            if (found[(int64_t)y * across + x] && !settled[(int64_t)y * across + x]) {
                if (!improve(s, y, x)) {
                    settled[(int64_t)y * across + x] = 1;
                    continue;
                }
                better = 1;
                for (int j = y - s->span; j <= y + s->span; j++)
                    for (int i = x - s->span; i <= x + s->span; i++)
                        if (j >= 0 && j < down && i >= 0 && i < across) settled[(int64_t)j * across + i] = 0;
            }
    return better;
}

int tec_grid_search(int kind, int factor, int row, int column, int height, int width, const int32_t *samples,
                    const uint8_t *known, int span, int32_t *native) {
    TecGrid grid = {kind, factor, row, column};
    if (!tec_is_grid(&grid) || (span != 1 && span != 2)) return TEC_BAD_ARGUMENT;
    Axis rows = {.first = 0}, columns = {.first = 0};
    int status = tec_axis(&rows, kind, factor, row, height);
    if (!status) status = tec_axis(&columns, kind, factor, column, width);
    int32_t *error = 0;
    uint8_t *found = 0;
    if (!status && rows.values >= span && columns.values >= span) {
        error = malloc((size_t)height * (size_t)width * sizeof *error);
        found = calloc(2 * (size_t)rows.values, (size_t)columns.values);
        if (!error || !found) status = TEC_NO_MEMORY;
        int64_t area = (int64_t)rows.unit * columns.unit;
        for (int y = 0; y < height && !status; y++)
            for (int x = 0; x < width; x++) {
                const int32_t *up = native + (int64_t)rows.first[y] * columns.values;
                const int32_t *down = native + (int64_t)rows.second[y] * columns.values;
                int64_t one = (int64_t)up[columns.first[x]] * (columns.unit - columns.weight[x]) +
                              (int64_t)up[columns.second[x]] * columns.weight[x];
                int64_t two = (int64_t)down[columns.first[x]] * (columns.unit - columns.weight[x]) +
                              (int64_t)down[columns.second[x]] * columns.weight[x];
                int64_t off = one * (rows.unit - rows.weight[y]) + two * rows.weight[y] -
                              area * samples[(int64_t)y * width + x];
                error[(int64_t)y * width + x] = (int32_t)(off < -(1 << 28) ? -(1 << 28) : off > 1 << 28 ? 1 << 28 : off);
            }
        Search s = {&rows, &columns, (int)area, span, error, known, native};
        for (int n = 0; n < ROUNDS && !status; n++)
            if (!search(&s, found, found + (size_t)rows.values * (size_t)columns.values)) break;
    }
    free(error), free(found);
    tec_axis_end(&rows), tec_axis_end(&columns);
    return status;
}
