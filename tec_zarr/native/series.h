/* The temporal models tec-tt-s2 and tec-flex-s2: the dates of one tile, predicted from one another.
 * docs/format-tec-tt-s2.md defines all that a decoder computes.
 *
 * A *piece* is a date, or a layer of a date: the coefficients of its bands. Pieces are numbered; one
 * may refer to any other piece, but not in a circle. */
#ifndef TEC_SERIES_H
#define TEC_SERIES_H

#include "tile.h"

#define MOST_REFERENCES 3
#define WEIGHT_BITS 4 /* weights are in 1/16 */
#define MOST_WEIGHT 31
#define FIRST_WEIGHT 8
#define FINER_BITS 9 /* a date is coded finer in steps of 1/8 quality */

/* The pieces that a piece is predicted from. */
typedef struct {
    int count, finer;
    int32_t number[MOST_REFERENCES];
    uint8_t shared[CLASSES]; /* whether all bands have the weight of the first one */
    int8_t weight[MOST_REFERENCES][CLASSES][MOST_BANDS]; /* of bands in the order of the layout */
} References;

/* The section of a piece, and the quality of its layer in 1/4096. */
typedef struct {
    const uint8_t *bytes;
    int64_t length;
    int quality;
} TecPiece;

/* Takes the DN (bands, height, width) of a piece, and the checksum of its latents; returns a status. */
typedef int TecTake(void *to, int number, uint32_t checksum, const int32_t *dn);

/* Decode the pieces of a tile that are wanted, and those that they need. `take` gets each of them,
 * needed ones before the pieces that refer to them; dn is null for pieces that are only needed. */
int tec_series_decode(const TecModel *model, const TecPiece *pieces, int count, int bands, int height,
                      int width, const uint8_t *wanted, TecTake *take, void *to);

/* What predicts a piece, of the layers of the piece and its references by their qualities. */
int tec_prediction(int quality, const int *of_references, int count);
/* The quality of a piece of which its section's first byte is `head`. */
int tec_piece_quality(int quality, int head);
/* Make the prediction of a piece; and add it to the coefficients of its difference. */
int tec_predict(const TecModel *model, const Layout *layout, const References *references,
                const Coefficients *const *known, Coefficients *guess);
void tec_add(const TecModel *model, const Layout *layout, const Coefficients *guess, Coefficients *coefficients);

/* Write the parts of the header of a predicted piece; `first` is the spectrum of its first reference. */
void tec_write_weights(BitWriter *bits, int class, int bands, const References *references);
void tec_write_references(BitWriter *bits, const Layout *layout, const References *references, int number);
void tec_write_changed_means(BitWriter *bits, int bands, int64_t step, const double *wanted,
                             const int32_t *first, int32_t *means);
void tec_write_kept_basis(BitWriter *bits, const Basis *first, int class, int components,
                          const int32_t *spreads, Basis *basis);

/* ---- series_choice.c: for encoders */

/* Some coefficients of a piece, by class and band. */
typedef struct {
    int bands[CLASSES], count[CLASSES]; /* of values of a band */
    double share[CLASSES];              /* how many values of the tile one value stands for */
    double *rows[CLASSES];              /* (bands, count); null without bands */
    double *block;
} Sample;

/* Sums of products of all bands of one piece with all bands of another, by class. */
typedef struct {
    double of[CLASSES][MOST_BANDS][MOST_BANDS];
} Gram;

/* Take a sample of coefficients: of those that an encoder wants, or of decoded ones. */
int tec_sample(const TecModel *model, const Layout *layout, const Wanted *wanted, const Coefficients *decoded,
               Sample *sample);
void tec_sample_end(Sample *sample);
void tec_gram(const Sample *one, const Sample *other, Gram *gram);
/* Estimate the bits of a piece with this gram, at a step in DN. */
double tec_bits_of(const Sample *sample, const Gram *gram, double step);
/* Find weights of `count` references, in 1/16, for a step in DN, from the grams of target and references [count], and of
 * the references with one another [count][count], of which [j][i] is [i][j]; make the gram of what is
 * left. */
void tec_fit_weights(const Sample *sample, const Gram *own, const Gram *const *cross,
                     const Gram *const (*between)[MOST_REFERENCES], int count, double step,
                     References *references, Gram *left);
/* Choose an order of coding for dates with these estimated bits: alone (dates), and given one other
 * date (dates, dates), which is infinite where a date may not refer to the other. Find how much finer
 * to code each. */
int tec_order(int dates, const double *alone, const double *given, int32_t *order, int32_t *finer);

#endif
