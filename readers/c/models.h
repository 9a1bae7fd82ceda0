/* The models of a reader: their weights are part of the program. */
#ifndef TEC_MODELS_H
#define TEC_MODELS_H

#include "tec.h"

/* A weights file, with the first bytes of its SHA-256, by which frames name it. */
typedef struct {
    const char *model;
    uint8_t sha256[8];
    const uint8_t *file;
    int64_t length;
} TecWeights;

/* Made by weights.py; the last one has no file. */
extern const TecWeights tec_weights[];

/* Open the model that a frame needs; it stays null if the frame has no latents. Returns TEC_OK or a
 * negative status, and then what is wrong. */
int tec_model_for(const TecFrame *frame, TecModel **model, const char **wrong);

#endif
