/* Decision forests, walked many trees at a time. C11, no dependency but pthreads.

   A forest lies in one packed file (forest_packing.py writes it, forest.c checks all of it before
   anything runs). What is compared while walking are ranks: each feature's thresholds are sorted
   once ("cuts"), a value becomes the number of cuts that it lies beyond, and a node asks whether
   that rank reaches its own. This is exact for every input, float32 or float64, and makes a node
   fit in 4 bytes. Where missing values go is decided per column, not per node: a feature whose
   nodes treat missing values in two ways has two columns. A categorical set is a column of 0 and 1.
 */
#ifndef SARTOR_FOREST_H
#define SARTOR_FOREST_H

#include <stddef.h>
#include <stdint.h>

typedef struct forest forest;

enum forest_input { FOREST_FLOAT32 = 0, FOREST_FLOAT64 = 1 };

/* What runs: 0 portable, 1 AVX2, 2 AVX-512. */
int forest_best_level(void);

/* A forest in packed bytes, which are copied. NULL and a sentence in `why` where they are unfit. */
forest *forest_load(const void *bytes, size_t size, char *why, size_t room);
void forest_free(forest *);

/* Numbers a row, outputs a row (of margins; `finished` ones may have one more or fewer). */
uint32_t forest_features(const forest *);
uint32_t forest_outputs(const forest *, int finished);
int forest_double(const forest *); /* whether sums and outputs are float64, else float32 */

/* Predicts `rows` rows, each `stride` bytes after the last, numbers lying side by side. `out` holds
   rows x outputs numbers. `finished`: the link is applied, else margins. At most `threads` threads
   and no instruction set above `level`. 0, or -1 where memory is short. */
int forest_predict(const forest *, const void *in, int input, ptrdiff_t stride, size_t rows,
                   void *out, int finished, int threads, int level);

#endif
