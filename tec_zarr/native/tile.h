/* The parts of the image model tec-s2, for the units that code tiles. docs/format-tec-s2.md defines
 * all that a decoder computes.
 *
 * The synthesis computes in doubles that hold whole numbers below 2^53, so every sum is exact in
 * any order. It needs doubles without excess precision, and rounding to the nearest. */
#ifndef TEC_TILE_H
#define TEC_TILE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "grids.h"
#include "tec.h"

enum { ENCODE = 0, DECODE = 1, COLLECT = 2 };

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "doubles of this machine have excess precision"
#endif

#define FREQUENCIES 256 /* of a block at level 0 */
#define MOST_GRIDS 6 /* the number 7 says that a map follows */
#define MOST_SIDE 32768
#define MOST_MEAN (1 << 21)
#define GAIN_FACTORS 8
#define BASIS_BITS 12
#define FULL_BITS 24
#define SPREAD_HIGH 72
#define USUAL_BASES 9  /* of common sets of bands */
#define USUAL_BANDS 13 /* the most of such a set */
#define UNITS 64 /* of decoded planes in a DN */
#define FIRST_QUALITY 4096
#define LAST_QUALITY 32768

typedef struct {
    uint8_t class, u, v;
} Frequency;

struct TecModel {
    Context context;
    Frequency frequencies[FREQUENCIES]; /* in the order in which they are coded */
    int first[CLASSES + 1];             /* where the frequencies of each class begin */
    uint8_t towards_zero[INDEXES][2];
    int32_t usual[USUAL_BASES][USUAL_BANDS][USUAL_BANDS]; /* [basis][band][vector], in 1/2^24 */
    /* At level 0; at level 1 of repeated, of bilinear grids: by factor of the cells, in 1/2^16. */
    int32_t gains[3][GAIN_FACTORS][MOST_SIZE];
    /* Of level 0 and 1, whole numbers in 1/2^14; [u][i]: what frequency u adds to sample i. */
    double dct_back[2][MOST_SIZE][MOST_SIZE];
    double overlap_back[2][MOST_SIZE / 2][MOST_SIZE / 2];
    double dct[2][MOST_SIZE][MOST_SIZE], overlap[2][MOST_SIZE / 2][MOST_SIZE / 2];
};

/* Where the bands of a tile lie. */
typedef struct {
    int bands, height, width;
    TecGrid grids[MOST_BANDS];
    TecGrid cells[MOST_BANDS];  /* of the band's plane at level 1, of the tile at level 0; factor 1:
                                   each value is a cell */
    int level[MOST_BANDS];
    int order[MOST_BANDS], fine; /* bands in the order of bases; the first `fine` are of level 0 */
    int margin[2];
    int plane_height[2], plane_width[2]; /* by level */
    int rows, cols;                      /* of blocks, at both levels */
} Layout;

/* The basis of a class of frequencies, for `bands` bands in the order of the layout. */
typedef struct {
    int bands, components;
    int32_t spreads[MOST_BANDS];             /* of components, in quarter octaves */
    int32_t vectors[MOST_BANDS][MOST_BANDS]; /* [band][component], in 1/2^12 */
    int32_t full[MOST_BANDS][MOST_BANDS];    /* [band][vector], in 1/2^24 */
} Basis;

/* The header of a section. */
typedef struct {
    Layout layout;
    int32_t means[MOST_BANDS]; /* DN */
    Basis bases[CLASSES];
} Spectrum;

/* The coefficients of the bands of a tile in 1/64 DN: of[band] has a plane of rows x cols blocks for
 * each (u, v), u * size + v of them before it. Where alive[(u * 16 + v) * rows + r] is 0, row r of
 * the planes (u, v) of all bands is zero, and not written. `block` is what to free. */
typedef struct {
    int32_t *of[MOST_BANDS];
    uint8_t *alive;
    void *block;
} Coefficients;

/* A decoded date of a tile, before its pixels. Its bands are those of the map's source if there is a
 * map, which is the beginning of `map`, a section. */
typedef struct {
    Spectrum spectrum;
    Coefficients coefficients;
    const uint8_t *map; /* or null */
    int64_t map_length;
    int height, width; /* of the tile */
} TecDate;

/* Coefficients of the bands that an encoder wants: DN, times their gains; `block` is what to free. */
typedef struct {
    double *of[MOST_BANDS], *block;
} Wanted;

#define HEADER_ROOM 16384
#define MOST_DN (1 << 20)

/* Memory for `count` things of `each` bytes; null if there is none, or a size_t cannot count it. */
void *tec_room(uint64_t count, size_t each);
void *tec_zeros(uint64_t count, size_t each);

/* ---- tile_header.c */

/* Bits of the header, the highest of a byte first. `short_of` counts bits that were not there. */
typedef struct {
    const uint8_t *bytes;
    int64_t length, at; /* in bits */
    int short_of;
} BitReader;

typedef struct {
    uint8_t *bytes;
    int64_t length, at; /* in bits */
    int full;
} BitWriter;

/* The quantiser step in 1/256 DN of a quality in 1/4096, FIRST_QUALITY .. LAST_QUALITY. */
int64_t tec_step(int quality);
/* sine and cosine, in 1/2^30, of angle * pi / 2^15; the angle is -2^15 .. 2^15. */
void tec_sine(int32_t angle, int64_t *sine, int64_t *cosine);

/* Lay out bands on grids; bands, height and width are in range. Fails if a grid
 * does not exist, or there are more than MOST_GRIDS. */
int tec_layout(int bands, int height, int width, const TecGrid *grids, Layout *layout);
/* The bands of the layout whose planes have frequencies of a class are the first of its order. */
int tec_bands_of(const Layout *layout, int class);
/* Read a header; *after is where it ends. */
int tec_read_header(const TecModel *model, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int64_t step, Spectrum *spectrum, int64_t *after);
extern const uint8_t tec_bands_of_usual[USUAL_BASES];
/* How many usual bases have so many bands; and take one of these, from 1, or none (0). */
int tec_usual_bases(int bands);
void tec_usual_basis(const TecModel *model, const Layout *layout, int number, Basis *basis);
/* Bits that are not there are 0. */
uint32_t tec_get(BitReader *bits, int count);
void tec_put(BitWriter *bits, uint32_t value, int count);
void tec_put_signed(BitWriter *bits, int64_t value, int rice);
/* Write the parts of a header. Means of -2^20 .. 2^20 are rounded. */
void tec_write_layout(BitWriter *bits, const Layout *layout);
void tec_write_means(BitWriter *bits, int bands, int64_t step, const double *wanted, int32_t *means);
int tec_silent(int class);
int tec_first_spread(int class);
/* Bits of the angles of a column with spread 0. The more values a basis codes, the finer are its angles:
 * in a larger tile, and in a class of more frequencies. */
int tec_angle_base(const Layout *layout, int class);
int tec_angle_bits(int spread, int base);
/* The argument of tec_get_signed for the angle of row i in a column of `size` bits, in a basis that
 * follows another. A component of little energy has small angles. */
int tec_angle_rice(const Basis *basis, int class, int i, int size, int base);
/* Make the vectors of a basis from its angles, in units of pi / 2^15. */
void tec_make_vectors(const int32_t *angles, const Basis *before, Basis *basis);
int64_t tec_get_signed(BitReader *bits, int rice);
int tec_read_basis(BitReader *bits, int bands, int class, int angle_base, const Basis *before, Basis *basis);
/* log2 of the unit of means in DN, which is at most 1/32 step and at least 1. */
int tec_mean_digits(int64_t step);

/* ---- tile_mix.c */

/* How many planes of values the spectrum has. */
int tec_value_planes(const TecModel *model, const Spectrum *spectrum);
/* Inputs of the walk that are the same for a whole tile. */
void tec_walk_inputs(const Spectrum *spectrum, int quality, int prediction, int32_t components[CLASSES],
                     int32_t spreads[CLASSES * MOST_BANDS], int *kind, int *fineness);
/* Make room for coefficients, all of them zero. */
int tec_coefficients(const Layout *layout, Coefficients *out);
/* Make coefficients of bands of values (planes, blocks) and the indexes of their tables. */
int tec_mix_values(const TecModel *model, const Spectrum *spectrum, int64_t step,
                   const int32_t *values, const uint8_t *indexes, Coefficients *out);
/* 2^14 times the DN that a step of coefficient (u, v) of a band stands for. */
double tec_gain(const TecModel *model, const Layout *layout, int band, int u, int v); /* in 1/2^32 */
double tec_factor(const TecModel *model, const Layout *layout, int band, int u, int v, int64_t step);
/* Make what the walk sees of a prediction: (FREQUENCIES, blocks). Free it; null without memory. */
int16_t *tec_hints(const TecModel *model, const Layout *layout, int64_t step, const Coefficients *guess);

/* ---- lapped.c */

/* Turn the coefficients of a band of a level into its plane, without the margin, and add the mean:
 * in whole `units`, or rounded to DN. The margin is cut off at level 0. A vector's length may be
 * read behind the coefficients. */
int tec_synthesise(const TecModel *model, const Layout *layout, int level, const int32_t *coefficients,
                   const uint8_t *alive, int32_t mean, int units, int32_t *out);

/* Coefficients of a band's plane, which has the layout's size: (size^2, rows, cols). Encoders only. */
int tec_analyse(const TecModel *model, const Layout *layout, int band, const double *plane, double mean,
                double *coefficients);

/* ---- tile_planes.c: for encoders */

/* The plane of a band, of the size of its level. `known` is 0 for samples that were not measured, or
 * null. */
int tec_plane(const Layout *layout, int band, const int32_t *samples, const uint8_t *known, double *plane);

/* ---- tile_bases.c: for encoders */

/* Covariance of the coefficients of a class, of the bands in the layout's order. */
void tec_covariance(const TecModel *model, const Layout *layout, double *const *coefficients, int class,
                    double covariance[MOST_BANDS][MOST_BANDS]);
/* Write the basis of a class with this covariance, which is lost; the step is in its units. */
int tec_write_basis(BitWriter *bits, double covariance[MOST_BANDS][MOST_BANDS], int bands, double step,
                    int class, int angle_base, const Basis *before, Basis *basis);
/* The spread of a component with this variance in steps. */
int tec_spread(double variance);
/* Coefficients of the components of a class in steps: (frequencies, components, blocks). Returns
 * where they end. */
double *tec_components(const TecModel *model, const Layout *layout, double *const *coefficients,
                       int class, const Basis *basis, double step, double *components);

/* ---- tile.c */

uint32_t tec_checksum(const int32_t *values, int64_t count);
int tec_is_tile(int bands, int height, int width, int quality);
int tec_decode_pixels(const TecModel *model, const Spectrum *spectrum, const Coefficients *coefficients,
                      int32_t *dn);
/* What predicts a date: nothing, other dates, or the layer below, too. */
enum { ALONE = 0, FROM_DATES = 32, FROM_LAYER = 48 };
/* Decode the coefficients behind a header; `guess` is their prediction, null if they have none. */
int tec_decode_values(const TecModel *model, const Spectrum *spectrum, int quality, int prediction,
                      const Coefficients *guess, const uint8_t *bytes,
                      int64_t length, Coefficients *out, uint32_t *checksum);
/* Decode a section of tec-s2, which must live as long as the date if it begins with a map. */
int tec_decode_date(const TecModel *model, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int quality, TecDate *date, uint32_t *checksum);
int tec_date_pixels(const TecModel *model, const TecDate *date, int32_t *dn);
void tec_date_end(TecDate *date);

/* ---- tile_encode.c */

/* What the context network sees of values: `count` of them, or as many as there is room for. */
typedef struct {
    uint8_t *features; /* (most, INPUTS) */
    int32_t *symbols;
    int64_t count, most;
} Collected;

int tec_wanted(const Layout *layout, Wanted *wanted);
/* Planes of all bands, each of the size of level 0, and their means. */
int tec_planes_of(const Layout *layout, const int32_t *dn, const uint8_t *known, double *planes, double *means);
int tec_analyse_planes(const TecModel *model, const Layout *layout, const double *planes,
                       const int32_t *means, const Wanted *wanted);
/* The most planes of components that a layout can have. */
int64_t tec_component_places(const TecModel *model, const Layout *layout);
/* Code components, and decode them to coefficients if `decoded` is not null. Returns the length. */
int64_t tec_encode_values(const TecModel *model, const Spectrum *spectrum, int quality, int prediction,
                          const Coefficients *guess, const double *components, Collected *collected, uint8_t *bytes, int64_t capacity,
                          Coefficients *decoded, uint32_t *checksum);
/* Encode planes to a section of tec-s2; decode it if `decoded` is not null. Returns its length. */
int64_t tec_encode_plain(const TecModel *model, const Layout *layout, const double *planes,
                         const double *means, int quality, uint8_t *section, int64_t capacity,
                         Spectrum *spectrum, Coefficients *decoded, uint32_t *checksum);

#endif
