/* The public interface of the core. */
#ifndef TEC_H
#define TEC_H

#include <stdint.h>

enum {
    TEC_OK = 0,
    TEC_NO_MEMORY = -1,
    TEC_DAMAGED = -2,  /* the bytes are not what an encoder writes */
    TEC_TOO_SMALL = -3, /* the output does not fit into the buffer of the caller */
    TEC_BAD_ARGUMENT = -4,
};

/* ---- model 1, tec-s2: one date of one tile to and from bytes
 *
 * All functions return TEC_OK or a negative status, unless another result is named. A model is only
 * read: threads may share it. Tiles have 1 to 31 bands and 1 to 32768 rows and columns. */

typedef struct TecModel TecModel;

/* The grid of a band: the first `row` and `column` of a whole cell of `factor` x `factor` samples;
 * kind 0 repeats the value of a cell, kind 1 is bilinear. The factor is 0 for a band on no grid. */
typedef struct {
    int32_t kind, factor, row, column;
} TecGrid;

/* Make a model of the bytes of its weights (safetensors); the bytes are not needed afterwards. */
int tec_model_open(const uint8_t *file, int64_t length, TecModel **model);
void tec_model_close(TecModel *model);

/* Decode the section of one date to dn (bands, height, width). `quality` is in 1/4096.
 * `checksum` becomes that of the latents. */
int tec_tile_decode(const TecModel *model, const uint8_t *section, int64_t length, int bands,
                    int height, int width, int quality, int32_t *dn, uint32_t *checksum);

/* Find the grids of the bands of dn (dates, bands, height, width): grids (bands). `known`, of the
 * same shape, is 0 for samples that were not measured; null if all were. Samples are within 2^20. */
int tec_tile_grids(const int32_t *dn, const uint8_t *known, int dates, int bands, int height,
                   int width, int quality, TecGrid *grids);

/* Encode one date dn (bands, height, width), clipped to 2^20; `known` as above. Bands lie on at most
 * 7 different grids. `decoded`, of the shape of dn, becomes what the section decodes to; it may be null,
 * or dn. Returns the length of the section: at most `capacity` bytes, for which tec_tile_capacity
 * always suffices. */
int64_t tec_tile_encode(const TecModel *model, const int32_t *dn, const uint8_t *known,
                        const TecGrid *grids, int bands, int height, int width, int quality,
                        uint8_t *section, int64_t capacity, uint32_t *checksum, int32_t *decoded);
int64_t tec_tile_capacity(int bands, int height, int width);

/* What the context network sees of the values of one date, for training: the components in steps, the
 * values, and for each value the 28 inputs and the symbol; `most` is the room in values. If `rounded`,
 * values are rounded towards zero from 0.64, without a model. sizes: planes, rows, columns, and planes
 * of block means. Returns the number of values, or a negative status. */
int64_t tec_tile_collect(const TecModel *model, const int32_t *dn, const TecGrid *grids, int bands,
                         int height, int width, int quality, int rounded, int64_t most, double *components,
                         int32_t *values, uint8_t *features, int32_t *symbols, int32_t sizes[4]);

/* ---- models 2 and 3, tec-tt-s2 and tec-flex-s2: the dates of one tile */

/* Encode dates dn (dates, bands, height, width) in layers of the given qualities in 1/4096, from the
 * lowest. Dates refer to one another within runs of `run` dates. Piece layer * dates + date has its
 * section at out + starts[piece], of lengths[piece] bytes, and its latents have checksums[piece].
 * `decoded`, of the shape of dn, becomes what the last layers decode to; it may be null, or dn.
 * Returns the bytes used: at most dates * layers * (1 + tec_tile_capacity). */
int64_t tec_series_encode(const TecModel *model, const int32_t *dn, const uint8_t *known,
                          const TecGrid *grids, int dates, int bands, int height, int width, int run,
                          int layers, const int32_t *qualities, uint8_t *out, int64_t capacity,
                          int64_t *starts, int64_t *lengths, uint32_t *checksums, int32_t *decoded);

/* What the context network sees of the values of predicted pieces, for training: for each value the 28
 * inputs and the symbol. `most` is the room in values. Returns the number of values, or a negative
 * status. */
int64_t tec_series_collect(const TecModel *model, const int32_t *dn, const TecGrid *grids, int dates,
                           int bands, int height, int width, int layers, const int32_t *qualities,
                           uint8_t *features, int32_t *symbols, int64_t most);

/* ---- the bound layer: every sample within its bound, down to lossless
 *
 * docs/error-bounds.md describes it. Arrays are (dates, bands, height, width). Each band has a kind:
 * it is not coded here, it has one bound, or each of its blocks of 4 x 4 samples has one. `labels` is 0
 * where a sample was measured, any other number where its value does not matter; null: 0 everywhere. */

enum { TEC_FREE = 0, TEC_ONE_BOUND = 1, TEC_BLOCK_BOUNDS = 2 };

/* Decode the two sections of a frame's bound layer to dn. `kinds` and `bounds` are those of the bands;
 * the bound of a band with a bound for each block is the largest that a block has. The map is empty
 * if there is no such band. Bands of kind TEC_FREE are left as they are; samples that were not measured
 * get a prediction. TEC_DAMAGED: the bytes, the labels, or the bounds are not the encoder's. */
int tec_bound_decode(const uint8_t *section, int64_t length, const uint8_t *map, int64_t map_length,
                     int64_t dates, int64_t bands, int64_t height, int64_t width,
                     const uint8_t *labels, const uint8_t *kinds, const int32_t *bounds, int32_t *dn);

/* ---- frames: one chunk of an array
 *
 * docs/format.md describes them. All functions return TEC_OK or a negative status; `wrong` then
 * points to a text that says what is wrong, which is constant. */

enum {
    TEC_CHANGED = -5,     /* bytes, or what they decode to, do not match their checksum */
    TEC_NEWER = -6,       /* the frame needs a newer decoder */
    TEC_OVER_LIMIT = -7,  /* the frame asks for more than the limits allow */
    TEC_OTHER_MODEL = -8, /* this decoder does not have the model of the frame */
};

/* What a decoder takes at most: samples and bands of a chunk, sections of latents, bytes of a
 * header, bytes of latents and bound layer as stored, bytes of the mask as inflated. */
typedef struct {
    int64_t samples, bands, latent_sections, header_bytes, coded_bytes, mask_bytes;
} TecLimits;

/* The header of a frame. */
typedef struct {
    int64_t shape[4];         /* (time, band, y, x); an axis that the array lacks has length 1 */
    int32_t axes;             /* of the array: 0 all, 1 no time, 2 no band, 3 neither */
    int32_t dtype;            /* 0 uint16, 1 int16, 2 float32, 3 float64 */
    int32_t big_endian, column_major; /* how the array that was encoded lay in memory */
    int32_t model;            /* number; 0: it has a name */
    char model_name[256];
    uint8_t weights[8];       /* the first bytes of the SHA-256 of the model's file */
    int32_t quality;          /* in 1/4096 */
    int32_t band_count;       /* of `band_numbers`; 0 if the bands are not known */
    uint8_t band_numbers[256]; /* 0 B01, ... 7 B08, 8 B8A, 9 B09, ... 12 B12 */
    double scale, offset;     /* value = (DN + offset) * scale */
    int32_t nodata_count, index_count;
    double nodata[255];
    int64_t bounded_count;    /* bands of the bound layer */
    int64_t section_count;    /* sections of latents */
    int64_t header_bytes, total_bytes;
    int64_t bounds_at, indices_at, table_at; /* in the frame; no bounds: 0 */
} TecFrame;

/* Read the header of a frame, of which no more is needed. Null limits are those of tec_zarr. */
int tec_describe(const uint8_t *frame, int64_t length, const TecLimits *limits, TecFrame *header,
                 const char **wrong);

/* Whether a band is one of the bound layer. */
int tec_is_bounded(const TecFrame *header, const uint8_t *frame, int64_t band);

/* Decode a frame to samples (time, band, y, x) of its dtype, in the byte order of the machine.
 *
 * `dates` are the dates wanted, in any order; null: all. `size` is that of `samples` in bytes.
 * `model` is the one whose file the frame names; it may be null if nothing is left to a model.
 * After an error the samples mean nothing. */
int tec_decode(const uint8_t *frame, int64_t length, const TecLimits *limits,
               const TecModel *model, const int64_t *dates, int64_t date_count, void *samples,
               int64_t size, const char **wrong);

/* Convert n whole DN to values of an array of a dtype, numbered as above, none of which is one of
 * the `count` nodata values. */
int tec_values(const int32_t *dn, int64_t n, int dtype, double scale, double offset,
               const double *nodata, int count, void *values);

#endif
