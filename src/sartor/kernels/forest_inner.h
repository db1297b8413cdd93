/* What forest.c and the walkers share. */
#ifndef SARTOR_FOREST_INNER_H
#define SARTOR_FOREST_INNER_H

#include "forest.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define FOREST_X86 1
#endif

enum { LANES = 16, TOP = 7, BLOCK = 128, LEVELS = 6, FAN = 16 };
enum layout { WIDE = 0, NARROW = 1, OBLIVIOUS = 2 };

/* The cuts of one feature. levels[0] are the cuts themselves, padded; level i holds the last of
   each 16 of level i-1, so that a search looks at 16 numbers a level. */
typedef struct {
    uint32_t feature, count, depth;
    const void *levels[LEVELS];
} scale;

/* A column takes its scale's rank, or `other` where the value is one of those in `when`
   (1: NaN, 2: zero as LightGBM counts it). */
typedef struct {
    uint32_t scale, when, other;
} column;

/* The categorical columns of one feature: a row of bits for each category, before them one for
   missing values and one for all that is no known category. */
typedef struct {
    uint32_t feature, rule, categories, count, first;
    const uint8_t *bits;
    size_t row;
} family;

struct forest {
    uint8_t *file; /* our copy, aligned to 64 bytes */
    void *pivots;
    scale *scales;
    column *columns;
    family *families;
    uint32_t features, precise, scale_count, numeric, family_count, column_count, padded;
    uint32_t layout, trees, groups, outputs, width, sums_double, link;
    uint32_t column_bits, pair_bits;
    double divide, factor, steepness;
    const uint32_t *tops;   /* NARROW: [groups][7][16], the upper three levels; OBLIVIOUS: below */
    const uint32_t *start;  /* [groups * 16] first node of each tree (or first leaf) */
    const uint32_t *depth;  /* [groups] steps to the deepest leaf of a group */
    const uint32_t *shallow; /* [groups] steps below which no tree of the group has a leaf */
    const uint32_t *top_at; /* [groups] OBLIVIOUS: where the group's splits begin */
    const void *nodes;
    const void *leaves;     /* a number (width 1) or the ordinal of a row of `table`, by node */
    const void *table;
    const uint32_t *output; /* [trees] */
    const double *base;     /* [outputs] where sums begin */
    const double *offset;   /* [outputs] what is added at the end */
};

/* Rows of one block, ranked, and their sums; `sums` has outputs numbers a row, float or double. */
typedef struct {
    const forest *f;
    size_t rows;
    void *ranks; /* [rows][padded] uint16_t, WIDE: uint32_t */
    void *sums;
} block;

static inline int32_t key32(uint32_t bits) {
    int32_t magnitude = (int32_t)(bits & 0x7fffffffu);
    return bits >> 31 ? -magnitude : magnitude;
}

static inline int64_t key64(uint64_t bits) {
    int64_t magnitude = (int64_t)(bits & 0x7fffffffffffffffu);
    return bits >> 63 ? -magnitude : magnitude;
}

/* Adds the leaves of the trees from `first` on, in their order; `at` are their nodes. */
void forest_add(const block *b, size_t row, uint32_t first, const uint32_t *at);
uint32_t forest_search32(const scale *s, int32_t key);
uint32_t forest_search64(const scale *s, int64_t key);

void forest_walk_portable(const block *b);
#ifdef FOREST_X86
void forest_walk_avx2(const block *b);
void forest_walk_avx512(const block *b);
void forest_ranks_avx512(const forest *f, const int32_t *keys, uint32_t *ranks);
void forest_ranks64_avx512(const forest *f, const int64_t *keys, uint32_t *ranks);
#endif

#endif
