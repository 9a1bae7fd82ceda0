/* The map of a section: polynomials and exceptions. docs/format-tec-s2.md defines them. */
#include "tile_map.h"

#include "tile.h"

#define MARK 7           /* in place of the number of grids */
#define MOST_MAPPED_SIDE 4096   /* of a tile with a map */
#define WHOLE 32         /* binary digits after the point of a place */

static const int DIGITS[6] = {14, 22, 22, 32, 32, 32};
static const int MOST_BITS[6] = {26, 24, 24, 22, 22, 22};
static const int AROUND[8][2] = {{-1, -1}, {-1, 0}, {-1, 1}, {0, -1}, {0, 1}, {1, -1}, {1, 0}, {1, 1}};

int tec_is_mapped(const uint8_t *section, int64_t length) {
    return length > 0 && section[0] >> 5 == MARK;
}

static int read_axis(BitReader *r, int64_t axis[6]) {
    for (int i = 0; i < 6; i++) {
        int bits = (int)tec_get(r, 5);
        if (bits > MOST_BITS[i]) return TEC_DAMAGED;
        int64_t size = tec_get(r, bits);
        int negative = bits ? (int)tec_get(r, 1) : 0;
        axis[i] = (negative ? -size : size) * ((int64_t)1 << (WHOLE - DIGITS[i]));
    }
    return TEC_OK;
}

static int64_t place(const int64_t k[6], int64_t row, int64_t column) {
    int64_t whole = k[0] + k[1] * column + k[2] * row + (k[3] * column + k[4] * row) * column +
                    k[5] * row * row;
    return whole >= 0 ? whole >> WHOLE : -1;
}

int tec_map_places(const uint8_t *section, int64_t length, int height, int width, int32_t *places,
                   int *source_height, int *source_width, int64_t *after) {
    if (height < 1 || width < 1) return TEC_BAD_ARGUMENT;
    if (height > MOST_MAPPED_SIDE || width > MOST_MAPPED_SIDE || !tec_is_mapped(section, length)) return TEC_DAMAGED;
    BitReader r = {section, length > INT64_MAX / 8 ? INT64_MAX : 8 * length, 3, 0};
    int64_t rows[6], columns[6];
    if (read_axis(&r, rows) || read_axis(&r, columns)) return TEC_DAMAGED;
    int64_t last_row = 0, last_column = 0;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            int64_t row = place(rows, y, x), column = place(columns, y, x);
            if (row < 0 || column < 0) return TEC_DAMAGED;
            if (row > last_row) last_row = row;
            if (column > last_column) last_column = column;
        }
    int64_t tall = last_row + 1, wide = last_column + 1, most = 4 * (int64_t)height * width + 4096;
    if (tall > most || wide > most / tall) return TEC_DAMAGED;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            places[(int64_t)y * width + x] =
                (int32_t)(place(rows, y, x) * wide + place(columns, y, x));
    int count_bits = (int)tec_get(&r, 5);
    int64_t count = tec_get(&r, count_bits), at = -1;
    int gap_bits = count ? (int)tec_get(&r, 5) : 0;
    for (int64_t i = 0; i < count && !r.short_of; i++) {
        at += 1 + (int64_t)tec_get(&r, gap_bits);
        const int *off = AROUND[tec_get(&r, 3)];
        if (at >= (int64_t)height * width) return TEC_DAMAGED;
        int64_t row = places[at] / wide + off[0], column = places[at] % wide + off[1];
        if (row < 0 || row >= tall || column < 0 || column >= wide) return TEC_DAMAGED;
        places[at] = (int32_t)(row * wide + column);
    }
    if (r.short_of) return TEC_DAMAGED;
    *source_height = (int)tall, *source_width = (int)wide;
    *after = (r.at + 7) / 8;
    return TEC_OK;
}
