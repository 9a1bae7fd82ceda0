/* The dates of a tile in a frame of tec-tt-s2 or tec-flex-s2. */
#include <stdlib.h>

#include "frame.h"
#include "series.h"

#define MOST_LAYERS 16
#define LAYER_QUALITY 10240 /* a layer is 2.5 qualities finer than the one below */

typedef struct {
    const TecLatents *latents;
    const uint8_t (*checks)[2 * MOST_LAYERS]; /* of layers, by date; null: tec-tt-s2 */
    int dates, layers;
    TecTakeDate *take;
    void *to;
} Tile;

/* Check the latents of a piece; pass on the DN of the last layer of a wanted date. */
static int take_piece(void *to, int number, uint32_t checksum, const int32_t *dn) {
    const Tile *t = to;
    int date = number % t->dates, layer = number / t->dates;
    if (t->checks) {
        const uint8_t *check = t->checks[date] + 2 * layer;
        if ((checksum & 0xffff) != (uint32_t)(check[0] | check[1] << 8)) return TEC_CHANGED;
    } else if (checksum != t->latents[date].checksum)
        return TEC_CHANGED;
    return dn ? t->take(t->to, date, dn) : TEC_OK;
}

/* Find the layers of a date: their checksums and sections, `apart` pieces from one another. */
static int read_layers(const TecLatents *latents, int apart, uint8_t *checks, TecPiece *pieces, int *layers) {
    Cursor c = {latents->bytes, latents->bytes + latents->length, 0};
    int64_t count = read_varint(&c), context = read_varint(&c), head = read_varint(&c);
    int quality = (int)read_number(&c, 2);
    if (c.short_of || count < 1 || count > MOST_LAYERS || context != 1 || head != 2) return TEC_DAMAGED;
    if (quality < FIRST_QUALITY || quality + (count - 1) * LAYER_QUALITY > LAST_QUALITY) return TEC_DAMAGED;
    for (int64_t i = 0; i < count; i++) {
        int64_t length = read_varint(&c);
        if (c.short_of || length < 2 || length > c.end - c.at) return TEC_DAMAGED;
        checks[2 * i] = c.at[0], checks[2 * i + 1] = c.at[1];
        pieces[i * apart] = (TecPiece){c.at + 2, length - 2, quality + (int)i * LAYER_QUALITY};
        c.at += length;
    }
    if (c.at != c.end) return TEC_DAMAGED;
    if (tec_crc32(checks, 2 * count) != latents->checksum) return TEC_CHANGED;
    *layers = (int)count;
    return TEC_OK;
}

int tec_decode_series(const TecModel *m, int flexible, const TecLatents *latents, int dates, int bands,
                      int height, int width, int quality, const uint8_t *wanted, TecTakeDate *take, void *to) {
    Tile tile = {.latents = latents, .dates = dates, .layers = 1, .take = take, .to = to};
    uint64_t most = (uint64_t)dates * (flexible ? MOST_LAYERS : 1);
    TecPiece *pieces = tec_zeros(most, sizeof *pieces);
    uint8_t *wanted_pieces = tec_zeros(most, 1);
    uint8_t (*checks)[2 * MOST_LAYERS] = tec_zeros((uint64_t)dates, sizeof *checks);
    int status = pieces && wanted_pieces && checks ? TEC_OK : TEC_NO_MEMORY;
    for (int d = 0; d < dates && !status; d++) {
        int layers = 1;
        if (flexible) status = read_layers(&latents[d], dates, checks[d], pieces + d, &layers);
        else pieces[d] = (TecPiece){latents[d].bytes, latents[d].length, quality};
        if (!status && d && layers != tile.layers) status = TEC_DAMAGED;
        tile.layers = layers;
    }
    for (int d = 0; d < dates && !status; d++) wanted_pieces[(tile.layers - 1) * dates + d] = wanted[d];
    if (flexible) tile.checks = (const uint8_t (*)[2 * MOST_LAYERS])checks;
    if (!status)
        status = tec_series_decode(m, pieces, tile.layers * dates, bands, height, width, wanted_pieces, take_piece, &tile);
    free(pieces), free(wanted_pieces), free(checks);
    return status;
}
